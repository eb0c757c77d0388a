// Attention of one new token a row over the row's own keys and values, which its own join first. torch's flash kernel and the copies around it
// cost more in calls than in work here. Sums and softmax are fp32. Called by step_attention.py; D is whole thirty-twos.

#include "tiles.h"

#ifdef LUTHIER_HAS_TILES
#include <cmath>

namespace {

using luthier::add_products;
using luthier::all;
using luthier::bf16;
using luthier::larger;
using luthier::largest;
using luthier::load;
using luthier::only;
using luthier::store;
using luthier::total_in_halves;
using luthier::V;

constexpr int64_t AHEAD = 32;  // tokens: what is read of one lies a few lines from the next, which the processor does not foresee

// What `count` numbers from here on lie in; an address behind all there is does no harm
inline void fetch(const bf16 *from, int64_t count) {
    for (int64_t i = 0; i < count; i += 32) __builtin_prefetch(from + i);
}

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

// The first `length` scores to exp(score - the largest) / their sum; the logarithm of the sum of exp(score). Behind them there is room up to a
// whole sixteen.
float softmax(float *row, int64_t length) {
    V top = all(row[0]), totals = {};
    for (int64_t c = 0; c < length; c += 16) top = larger(top, only(load(row + c), length - c, row[0]));
    const float most = largest(top);
    for (int64_t c = 0; c < length; c += 16) {
        const V e = only(luthier::exp(load(row + c) - most), length - c, 0.0f);
        totals += e;
        store(row + c, e);
    }
    const float total = total_in_halves(totals);
    const V share = all(1.0f / total);
    for (int64_t c = 0; c < length; c += 16) store(row + c, load(row + c) * share);
    return most + std::log(total);
}

// Values weighted for N query heads, whose weights are `apart` numbers apart, to `out` [N, D]: sums stay in registers for all tokens
template <int N> void weigh(const bf16 *values, int64_t step, int64_t length, const float *weights, int64_t apart, int64_t D, bf16 *out) {
    for (int64_t d = 0; d < D; d += 32) {
        V low[N] = {}, high[N] = {};
        for (int64_t c = 0; c < length; ++c) {
            __builtin_prefetch(values + (c + AHEAD) * step + d);
            const V first = load(values + c * step + d), second = load(values + c * step + d + 16);
            for (int n = 0; n < N; ++n) {
                const V weight = all(weights[n * apart + c]);
                low[n] = weight * first + low[n];
                high[n] = weight * second + high[n];
            }
        }
        for (int n = 0; n < N; ++n) store(out + n * D + d, low[n]), store(out + n * D + d + 16, high[n]);
    }
}

// The query heads that read key head `kv` of row r
void attend(const Step &s, int64_t r, int64_t kv) {
    static thread_local std::vector<float> scores;
    const int64_t G = s.H / s.K, D = s.D, apart = s.K * D, length = s.slot[r] - r * s.C + 1, wide = (length + 15) / 16 * 16;
    const int64_t here = (s.slot[r] * s.K + kv) * D, first = (r * s.C * s.K + kv) * D;
    std::memcpy(s.keys + here, s.k + r * s.row + kv * D, 2 * D);
    std::memcpy(s.values + here, s.v + r * s.row + kv * D, 2 * D);
    luthier::make_room(scores, G * wide);
    const bf16 *q = s.q + r * s.row + kv * G * D;
    for (int64_t c = 0; c < length; ++c) {
        const bf16 *key = s.keys + first + c * apart;
        fetch(key + AHEAD * apart, D);
        for (int64_t g = 0; g < G; ++g) {
            V sum = {};
            for (int64_t d = 0; d < D; d += 32) sum = add_products(sum, q + g * D + d, key + d);
            scores[g * wide + c] = s.scale * total_in_halves(sum);
        }
    }
    for (int64_t g = 0; g < G; ++g) s.log_sums[r * s.H + kv * G + g] = softmax(scores.data() + g * wide, length);
    for (int64_t g = 0; g < G; g += 4) {
        const float *weights = scores.data() + g * wide;
        bf16 *out = s.out + (r * s.H + kv * G + g) * D;
        switch (G - g) {
            case 1: weigh<1>(s.values + first, apart, length, weights, wide, D, out); break;
            case 2: weigh<2>(s.values + first, apart, length, weights, wide, D, out); break;
            case 3: weigh<3>(s.values + first, apart, length, weights, wide, D, out); break;
            default: weigh<4>(s.values + first, apart, length, weights, wide, D, out);
        }
    }
}

}  // namespace

extern "C" void luthier_step_attention(const bf16 *q, const bf16 *k, const bf16 *v, int64_t row, bf16 *keys, bf16 *values, const int64_t *slot,
                                       int64_t R, int64_t C, int64_t H, int64_t K, int64_t D, float scale, bf16 *out, float *log_sums,
                                       int threads) {
    const Step step{q, k, v, row, keys, values, slot, C, H, K, D, scale, out, log_sums};
    int64_t pairs_of_numbers = 0;
    for (int64_t r = 0; r < R; ++r) pairs_of_numbers += (slot[r] - r * C + 1) * H * D;
    luthier::Shortage shortage;
#pragma omp parallel for num_threads(pairs_of_numbers < 262144 ? 1 : threads) schedule(dynamic, 1)
    for (int64_t n = 0; n < R * K; ++n) shortage.in_thread([&] { attend(step, n / K, n % K); });
    shortage.rethrow();
}

LUTHIER_CALL(luthier_step_attention)
#else
extern "C" void luthier_step_attention(const void *, const void *, const void *, int64_t, void *, void *, const void *, int64_t, int64_t, int64_t,
                                       int64_t, int64_t, float, void *, void *, int) {}
#endif
