// The products of low-rank adapters on tiles: one side is the rank, 16 or a little more.
//
// Libraries lay such products out like large ones and spend most of the time on that: [16, 330] x [330, 1536] takes 190 us there, of which
// the arithmetic is 8. Here the wide matrix is read once, where it lies. Called by narrow.py, which takes torch's own products elsewhere.
// Sums are fp32; results are rounded to bf16 once. A result does not depend on the number of threads. Ranks are whole sixteens, K whole
// thirty-twos; the caller checks that.

#pragma once

#include "together.h"

#ifdef LUTHIER_HAS_TILES
#include <algorithm>

namespace luthier {

// ---- out[t, r] = scale * sum over k of x[t, k] w[k, r] --------------------------------------------------------------------------------
// w as pairs of rows: packed[r / 16][k / 2][r % 16][k % 2], from a line of the cache on
inline void pack_pairs(const bf16 *w, int64_t k_stride, int64_t r_stride, int64_t K, int64_t R, bf16 *packed) {
    alignas(64) bf16 nothing[512];
    for (int64_t r = 0; r < R; r += 16)
        for (int64_t k = 0; k < K; k += 32) {
            bf16 *to = packed + r * K + k * 16;
            if (k_stride == 1) turn_pairs(w + r * r_stride + k, r_stride, 16, 32, to);  // both numbers of a pair lie side by side
            else pair_rows(w + k * k_stride + r, k_stride, 32, 16, to, nothing);
        }
}

inline void store_scaled(const float *sums, float scale, bf16 *out, int64_t stride, int64_t rows) {
    for (int64_t t = 0; t < rows; ++t) {
        store(out + t * stride, load(sums + 16 * t) * scale);
    }
}

struct NarrowProduct {
    const bf16 *x;
    int64_t x_stride, T, K;
    const bf16 *w;
    int64_t k_stride, r_stride, R;
    float scale;
    bf16 *out;
    int64_t out_stride;
};

// One such product for `together`; `slot`: another one for each of those computed together
class Narrow {
  public:
    Narrow(const NarrowProduct &product, int slot) : p(product), right(room<Narrow>(slot, product.R * product.K)) {
        pack_pairs(p.w, p.k_stride, p.r_stride, p.K, p.R, right);
    }
    int64_t numbers() const { return p.T * p.K; }
    void run() {
        Session tiles;
        const int64_t blocks = (p.T + 63) / 64;
        for (int64_t n; (n = claims.next()) < blocks;)
            for (int64_t r = 0; r < p.R; r += 16) block(tiles, n, r, n == blocks - 1);
    }

  private:
    // 64 tokens, or what is left of them, and 16 of the rank
    void block(Session &tiles, int64_t n, int64_t r, bool is_last) const {
        alignas(64) float sums[4][256];
        const int64_t whole = p.T / 16, first = n * 4, count = std::min<int64_t>(whole - first, 4), rest = is_last ? p.T - whole * 16 : 0;
        const bf16 *b = right + r * p.K;
        tiles.rows(0, 16);
        zero_sums(tiles);
        for (int64_t k = 0; k < p.K; k += 32) {
            const bf16 *a = p.x + first * 16 * p.x_stride + k;
            tiles.load<7>(b + k * 16, 64);
            if (count > 0) { tiles.load<4>(a, p.x_stride * 2); tiles.add<0, 4, 7>(); }
            if (count > 1) { tiles.load<5>(a + 16 * p.x_stride, p.x_stride * 2); tiles.add<1, 5, 7>(); }
            if (count > 2) { tiles.load<4>(a + 32 * p.x_stride, p.x_stride * 2); tiles.add<2, 4, 7>(); }
            if (count > 3) { tiles.load<5>(a + 48 * p.x_stride, p.x_stride * 2); tiles.add<3, 5, 7>(); }
        }
        tiles.store<0>(sums[0]);
        tiles.store<1>(sums[1]);
        tiles.store<2>(sums[2]);
        tiles.store<3>(sums[3]);
        for (int64_t i = 0; i < count; ++i) store_scaled(sums[i], p.scale, p.out + (first + i) * 16 * p.out_stride + r, p.out_stride, 16);
        if (rest == 0) return;
        tiles.rows(1 | 1 << 4, static_cast<int>(rest));
        tiles.zero<0>();
        for (int64_t k = 0; k < p.K; k += 32) {
            tiles.load<7>(b + k * 16, 64);
            tiles.load<4>(p.x + whole * 16 * p.x_stride + k, p.x_stride * 2);
            tiles.add<0, 4, 7>();
        }
        tiles.store<0>(sums[0]);
        store_scaled(sums[0], p.scale, p.out + whole * 16 * p.out_stride + r, p.out_stride, rest);
    }
    NarrowProduct p;
    bf16 *right;
    Claims claims;
};

// ---- out[r, o] = o_scale[o] * sum over t of t_scale[t] u[t, r] g[t, o] ------------------------------------------------------------------
// u turned, [R, T], the t past its end 0
inline void pack_turned(const bf16 *u, int64_t u_stride, const float *t_scale, int64_t T, int64_t padded, int64_t R, bf16 *turned) {
    alignas(64) bf16 scaled[32 * 32], low[512], high[512], tile[512];
    for (int64_t r = 0; r < R; r += 32)
        for (int64_t t = 0; t < padded; t += 32) {
            const int64_t rows = std::min<int64_t>(32, T - t), ranks = std::min<int64_t>(32, R - r);
            const bf16 *from = u + t * u_stride + r;
            int64_t stride = u_stride;
            if (t_scale != nullptr) {
                for (int64_t row = 0; row < rows; ++row)
                    for (int64_t j = 0; j < ranks; j += 16) store(scaled + row * 32 + j, load(from + row * u_stride + j) * t_scale[t + row]);
                from = scaled, stride = 32;
            }
            pair_rows(from, stride, rows, ranks, low, high);  // pairs of t of each rank, and these turned
            for (int64_t j = 0; j < ranks; j += 16) {
                turn_pairs(j == 0 ? low : high, 32, 16, 32, tile);
                for (int64_t row = 0; row < 16; ++row) std::memcpy(turned + (r + j + row) * padded + t, tile + 32 * row, 64);
            }
        }
}

inline void store_outer(const float *sums, const bf16 *o_scale, bf16 *out, int64_t r_stride, int64_t o_stride, int64_t columns) {
    if (r_stride == 1) {  // [O, R]
        alignas(64) float turned[256];
        turn_pairs(reinterpret_cast<const bf16 *>(sums), 32, 16, 32, reinterpret_cast<bf16 *>(turned));
        for (int64_t o = 0; o < columns; ++o) store(out + o * o_stride, load(turned + 16 * o));
        return;
    }
    const V scale = o_scale == nullptr ? all(1.0f) : load(o_scale, columns);
    for (int64_t r = 0; r < 16; ++r) store(out + r * r_stride, load(sums + 16 * r) * scale, columns);
}

struct OuterProduct {
    const bf16 *u;
    int64_t u_stride;
    const float *t_scale;
    int64_t R;
    const bf16 *g;
    int64_t g_stride, T, O;
    const bf16 *o_scale;
    bf16 *out;
    int64_t r_stride, o_stride;
};

// One such product for `together`; `slot`: another one for each of those computed together
class Outer {
  public:
    Outer(const OuterProduct &product, int slot)
        : p(product), padded((product.T + 31) / 32 * 32), turned(room<Outer>(slot, product.R * padded)) {
        pack_turned(p.u, p.u_stride, p.t_scale, p.T, padded, p.R, turned);
    }
    int64_t numbers() const { return p.T * p.O; }
    void run() {
        Session tiles;
        for (int64_t o; (o = 32 * claims.next()) < p.O;)
            for (int64_t r = 0; r < p.R; r += 48) block(tiles, o, r, std::min<int64_t>((p.R - r) / 16, 3));
    }

  private:
    // 32 columns; up to three ranks of sixteen at a time: six tiles of sums
    void block(Session &tiles, int64_t o, int64_t r, int64_t ranks) const {
        alignas(64) bf16 low[512], high[512];
        alignas(64) float sums[256];
        zero_sums(tiles);
        tiles.zero<4>();
        tiles.zero<5>();
        for (int64_t t = 0; t < padded; t += 32) {
            pair_rows(p.g + t * p.g_stride + o, p.g_stride, p.T - t, p.O - o, low, high);
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
            const int64_t at = o + 16 * half, width = std::min<int64_t>(p.O - at, 16);
            if (rank < ranks && width > 0)
                store_outer(sums, p.o_scale == nullptr ? nullptr : p.o_scale + at, p.out + (r + 16 * rank) * p.r_stride + at * p.o_stride,
                            p.r_stride, p.o_stride, width);
        };
        tiles.store<0>(sums); write(0, 0);
        tiles.store<1>(sums); write(0, 1);
        tiles.store<2>(sums); write(1, 0);
        tiles.store<3>(sums); write(1, 1);
        tiles.store<4>(sums); write(2, 0);
        tiles.store<5>(sums); write(2, 1);
    }
    OuterProduct p;
    int64_t padded;
    bf16 *turned;
    Claims claims;
};

}  // namespace luthier
#endif
