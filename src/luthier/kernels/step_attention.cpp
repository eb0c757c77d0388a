// Attention of one new token a row over the row's own keys and values, which its own join first. torch's flash kernel and the copies around it
// cost more in calls than in work here. Sums and softmax are fp32. Called by step_attention.py; D is whole thirty-twos.

#include "tiles.h"

#ifdef LUTHIER_HAS_TILES
#include <algorithm>
#include <cmath>

namespace {

using luthier::add_products;
using luthier::bf16;
using luthier::load;
using luthier::store;
using luthier::total_in_halves;
using luthier::V;

struct Step {
    const bf16 *q, *k, *v;  // of the new tokens: rows `row` numbers apart, heads D
    int64_t row;
    bf16 *keys, *values;   // [rows, C, K, D]
    const int64_t *slot;   // where in [rows * C] a row's new token goes; before it stand the row's others
    int64_t C, H, K, D;
    float scale;
    bf16 *out;             // [R, H, D]
    float *log_sums;       // [R, H]
};

// The query heads that read key head `kv` of row r
void attend(const Step &s, int64_t r, int64_t kv) {
    static thread_local std::vector<float> scores, sums;
    const int64_t G = s.H / s.K, D = s.D, apart = s.K * D, length = s.slot[r] - r * s.C + 1;
    const int64_t here = (s.slot[r] * s.K + kv) * D, first = (r * s.C * s.K + kv) * D;
    std::memcpy(s.keys + here, s.k + r * s.row + kv * D, 2 * D);
    std::memcpy(s.values + here, s.v + r * s.row + kv * D, 2 * D);
    scores.resize(G * length);
    sums.assign(G * D, 0.0f);
    const bf16 *q = s.q + r * s.row + kv * G * D;
    for (int64_t c = 0; c < length; ++c) {
        const bf16 *key = s.keys + first + c * apart;
        for (int64_t g = 0; g < G; ++g) {
            V sum = {};
            for (int64_t d = 0; d < D; d += 32) sum = add_products(sum, q + g * D + d, key + d);
            scores[g * length + c] = s.scale * total_in_halves(sum);
        }
    }
    for (int64_t g = 0; g < G; ++g) {
        float *row = scores.data() + g * length, total = 0.0f;
        const float most = *std::max_element(row, row + length);
        for (int64_t c = 0; c < length; ++c) total += row[c] = std::exp(row[c] - most);
        for (int64_t c = 0; c < length; ++c) row[c] /= total;
        s.log_sums[r * s.H + kv * G + g] = most + std::log(total);
    }
    for (int64_t c = 0; c < length; ++c) {
        const bf16 *value = s.values + first + c * apart;
        for (int64_t d = 0; d < D; d += 16) {
            const V v = load(value + d);
            for (int64_t g = 0; g < G; ++g) {
                float *sum = sums.data() + g * D + d;
                store(sum, scores[g * length + c] * v + load(sum));
            }
        }
    }
    for (int64_t i = 0; i < G * D; i += 16) store(s.out + (r * s.H + kv * G) * D + i, load(sums.data() + i));
}

}  // namespace

extern "C" void luthier_step_attention(const bf16 *q, const bf16 *k, const bf16 *v, int64_t row, bf16 *keys, bf16 *values, const int64_t *slot,
                                       int64_t R, int64_t C, int64_t H, int64_t K, int64_t D, float scale, bf16 *out, float *log_sums,
                                       int threads) {
    const Step step{q, k, v, row, keys, values, slot, C, H, K, D, scale, out, log_sums};
    int64_t pairs_of_numbers = 0;
    for (int64_t r = 0; r < R; ++r) pairs_of_numbers += (slot[r] - r * C + 1) * H * D;
#pragma omp parallel for num_threads(pairs_of_numbers < 262144 ? 1 : threads) schedule(dynamic, 1)
    for (int64_t n = 0; n < R * K; ++n) attend(step, n / K, n % K);
}
#else
extern "C" void luthier_step_attention(const void *, const void *, const void *, int64_t, void *, void *, const void *, int64_t, int64_t, int64_t,
                                       int64_t, int64_t, float, void *, void *, int) {}
#endif
