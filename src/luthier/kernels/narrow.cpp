// The products of low-rank adapters on tiles: one side is the rank, 16 or a little more.
//
// Libraries lay such products out like large ones and spend most of the time on that: [16, 330] x [330, 1536] takes 190 us there, of which
// the arithmetic is 8. Here the wide matrix is read once, where it lies. Called by narrow.py, which takes torch's own products elsewhere.
// Sums are fp32; results are rounded to bf16 once. A result does not depend on the number of threads. Ranks are whole sixteens, K whole
// thirty-twos; the caller checks that.

#include "tiles.h"

#ifdef LUTHIER_HAS_TILES

namespace {

using luthier::all;
using luthier::bf16;
using luthier::load;
using luthier::pair_rows;
using luthier::room;
using luthier::Session;
using luthier::store;
using luthier::turn_pairs;
using luthier::V;
using luthier::written;

struct Here;

// ---- out[t, r] = scale * sum over k of x[t, k] w[k, r] --------------------------------------------------------------------------------
// w as pairs of rows: packed[r / 16][k / 2][r % 16][k % 2], from a line of the cache on
void pack_pairs(const bf16 *w, int64_t k_stride, int64_t r_stride, int64_t K, int64_t R, bf16 *packed) {
    alignas(64) bf16 nothing[512];
    for (int64_t r = 0; r < R; r += 16)
        for (int64_t k = 0; k < K; k += 32) {
            bf16 *to = packed + r * K + k * 16;
            if (k_stride == 1) turn_pairs(w + r * r_stride + k, r_stride, 16, 32, to);  // both numbers of a pair lie side by side
            else pair_rows(w + k * k_stride + r, k_stride, 32, 16, to, nothing);
        }
}

void store_scaled(const float *sums, float scale, bf16 *out, int64_t stride, int64_t rows) {
    for (int64_t t = 0; t < rows; ++t) {
        store(out + t * stride, load(sums + 16 * t) * scale);
    }
}

void narrow(const bf16 *x, int64_t x_stride, int64_t T, int64_t K, const bf16 *w, int64_t k_stride, int64_t r_stride, int64_t R, float scale,
            bf16 *out, int64_t out_stride, int threads) {
    bf16 *right = room<Here>(0, R * K);
    pack_pairs(w, k_stride, r_stride, K, R, right);
    const int64_t whole = T / 16, blocks = (T + 63) / 64;
#pragma omp parallel for num_threads(T * K < 32768 ? 1 : threads)
    for (int64_t block = 0; block < blocks; ++block) {
        Session tiles;
        alignas(64) float sums[4][256];
        const int64_t first = block * 4, count = whole - first < 4 ? whole - first : 4;
        for (int64_t r = 0; r < R; r += 16) {
            const bf16 *b = right + r * K;
            tiles.rows(0, 16);
            written();
            tiles.zero<0>();
            tiles.zero<1>();
            tiles.zero<2>();
            tiles.zero<3>();
            for (int64_t k = 0; k < K; k += 32) {
                const bf16 *a = x + first * 16 * x_stride + k;
                tiles.load<7>(b + k * 16, 64);
                if (count > 0) { tiles.load<4>(a, x_stride * 2); tiles.add<0, 4, 7>(); }
                if (count > 1) { tiles.load<5>(a + 16 * x_stride, x_stride * 2); tiles.add<1, 5, 7>(); }
                if (count > 2) { tiles.load<4>(a + 32 * x_stride, x_stride * 2); tiles.add<2, 4, 7>(); }
                if (count > 3) { tiles.load<5>(a + 48 * x_stride, x_stride * 2); tiles.add<3, 5, 7>(); }
            }
            tiles.store<0>(sums[0]);
            tiles.store<1>(sums[1]);
            tiles.store<2>(sums[2]);
            tiles.store<3>(sums[3]);
            for (int64_t i = 0; i < count; ++i) store_scaled(sums[i], scale, out + (first + i) * 16 * out_stride + r, out_stride, 16);
            const int64_t rest = T - whole * 16;
            if (block == blocks - 1 && rest > 0) {
                tiles.rows(1 | 1 << 4, static_cast<int>(rest));
                tiles.zero<0>();
                for (int64_t k = 0; k < K; k += 32) {
                    tiles.load<7>(b + k * 16, 64);
                    tiles.load<4>(x + whole * 16 * x_stride + k, x_stride * 2);
                    tiles.add<0, 4, 7>();
                }
                tiles.store<0>(sums[0]);
                store_scaled(sums[0], scale, out + whole * 16 * out_stride + r, out_stride, rest);
            }
        }
    }
}

// ---- out[r, o] = o_scale[o] * sum over t of t_scale[t] u[t, r] g[t, o] ------------------------------------------------------------------
// u turned, [R, T], the t past its end 0
void pack_turned(const bf16 *u, int64_t u_stride, const float *t_scale, int64_t T, int64_t padded, int64_t R, bf16 *turned) {
    for (int64_t t = 0; t < padded; ++t)
        for (int64_t r = 0; r < R; r += 16) {
            alignas(32) bf16 row[16] = {};
            if (t < T) {
                std::memcpy(row, u + t * u_stride + r, 32);
                if (t_scale != nullptr) {
                    store(row, load(row) * t_scale[t]);
                }
            }
            for (int64_t j = 0; j < 16; ++j) turned[(r + j) * padded + t] = row[j];
        }
}

void store_outer(const float *sums, const bf16 *o_scale, bf16 *out, int64_t r_stride, int64_t o_stride, int64_t columns) {
    if (r_stride == 1) {  // [O, R]
        alignas(64) float turned[256];
        turn_pairs(reinterpret_cast<const bf16 *>(sums), 32, 16, 32, reinterpret_cast<bf16 *>(turned));
        for (int64_t o = 0; o < columns; ++o) store(out + o * o_stride, load(turned + 16 * o));
        return;
    }
    const V scale = o_scale == nullptr ? all(1.0f) : load(o_scale, columns);
    for (int64_t r = 0; r < 16; ++r) store(out + r * r_stride, load(sums + 16 * r) * scale, columns);
}

void outer(const bf16 *u, int64_t u_stride, const float *t_scale, int64_t R, const bf16 *g, int64_t g_stride, int64_t T, int64_t O,
           const bf16 *o_scale, bf16 *out, int64_t r_stride, int64_t o_stride, int threads) {
    const int64_t padded = (T + 31) / 32 * 32;
    bf16 *turned = room<Here>(1, R * padded);
    pack_turned(u, u_stride, t_scale, T, padded, R, turned);
#pragma omp parallel for num_threads(T * O < 32768 ? 1 : threads)
    for (int64_t o = 0; o < O; o += 32) {
        Session tiles;
        alignas(64) bf16 low[512], high[512];
        alignas(64) float sums[256];
        for (int64_t r = 0; r < R; r += 48) {  // three ranks of sixteen at a time: six tiles of sums
            const int64_t ranks = (R - r) / 16 < 3 ? (R - r) / 16 : 3;
            tiles.zero<0>();
            tiles.zero<1>();
            tiles.zero<2>();
            tiles.zero<3>();
            tiles.zero<4>();
            tiles.zero<5>();
            for (int64_t t = 0; t < padded; t += 32) {
                pair_rows(g + t * g_stride + o, g_stride, T - t, O - o, low, high);
                const bf16 *a = turned + r * padded + t;
                written();
                tiles.load<6>(a, padded * 2);
                tiles.load<7>(low, 64);
                tiles.add<0, 6, 7>();
                if (ranks > 1) { tiles.load<6>(a + 16 * padded, padded * 2); tiles.add<2, 6, 7>(); }
                if (ranks > 2) { tiles.load<6>(a + 32 * padded, padded * 2); tiles.add<4, 6, 7>(); }
                tiles.load<7>(high, 64);
                if (ranks > 2) tiles.add<5, 6, 7>();
                if (ranks > 1) { tiles.load<6>(a + 16 * padded, padded * 2); tiles.add<3, 6, 7>(); }
                tiles.load<6>(a, padded * 2);
                tiles.add<1, 6, 7>();
            }
            auto write = [&](int64_t rank, int64_t half) {
                const int64_t at = o + 16 * half, width = O - at < 16 ? O - at : 16;
                if (rank < ranks && width > 0)
                    store_outer(sums, o_scale == nullptr ? nullptr : o_scale + at, out + (r + 16 * rank) * r_stride + at * o_stride, r_stride,
                                o_stride, width);
            };
            tiles.store<0>(sums); write(0, 0);
            tiles.store<1>(sums); write(0, 1);
            tiles.store<2>(sums); write(1, 0);
            tiles.store<3>(sums); write(1, 1);
            tiles.store<4>(sums); write(2, 0);
            tiles.store<5>(sums); write(2, 1);
        }
    }
}

}  // namespace

extern "C" void luthier_narrow(const bf16 *x, int64_t x_stride, int64_t T, int64_t K, const bf16 *w, int64_t k_stride, int64_t r_stride, int64_t R,
                               float scale, bf16 *out, int64_t out_stride, int threads) {
    narrow(x, x_stride, T, K, w, k_stride, r_stride, R, scale, out, out_stride, threads);
}
extern "C" void luthier_outer(const bf16 *u, int64_t u_stride, const float *t_scale, int64_t R, const bf16 *g, int64_t g_stride, int64_t T,
                              int64_t O, const bf16 *o_scale, bf16 *out, int64_t r_stride, int64_t o_stride, int threads) {
    outer(u, u_stride, t_scale, R, g, g_stride, T, O, o_scale, out, r_stride, o_stride, threads);
}
#else
extern "C" void luthier_narrow(const void *, int64_t, int64_t, int64_t, const void *, int64_t, int64_t, int64_t, float, void *, int64_t, int) {}
extern "C" void luthier_outer(const void *, int64_t, const void *, int64_t, const void *, int64_t, int64_t, int64_t, const void *, void *, int64_t,
                              int64_t, int) {}
#endif
