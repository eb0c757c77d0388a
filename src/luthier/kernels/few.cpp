// Products of a few tokens with the large matrices of a layer: every w as [O, K], every K whole thirty-twos; reading w is all the work. Called by
// wide.py and few_layer.cpp. Sums are made in the order of wide.h, so that an answer does not depend on how many are computed at once.

#include "product.h"

#ifdef LUTHIER_HAS_TILES
#include <algorithm>

extern "C" void luthier_wide(const luthier::Part *, int64_t, int64_t, int64_t, const luthier::bf16 *, const luthier::bf16 *, int64_t, luthier::bf16 *,
                             int64_t, int);

namespace {

using luthier::bf16;
using luthier::FETCHED_TO;
using luthier::load;
using luthier::Part;
using luthier::Product;
using luthier::room;
using luthier::Session;
using luthier::store;
using luthier::turn_pairs;
using luthier::V;
using luthier::within;
using luthier::write;
using luthier::zero_sums;

struct Here;

#ifdef LUTHIER_HAS_AMX
constexpr int64_t TILE = 512;  // numbers of a tile

// At most 32 tokens. The rows of w are the left factor as they lie, x^T is the right one, laid out once; while 32 rows are multiplied, the next 32
// are fetched, in the order they lie in memory.

// x^T of all parts as pairs: for each 32 of k, the tile of tokens 0 to 15, then, where there are more, that of 16 to 31
void turn_tokens(const Product &p, bf16 *tokens) {
    for (int64_t i = 0; i < p.num_parts; ++i)
        for (int64_t k = 0; k < p.parts[i].K; k += 32)
            for (int64_t t = 0; t < p.T; t += 16, tokens += TILE)
                turn_pairs(p.parts[i].x + t * p.parts[i].x_stride + k, p.parts[i].x_stride, p.T - t, 32, tokens);
}

// 16 rows of w and 16 tokens of sums, [row][token], to out
void write_turned(const Product &p, const float *sums, int64_t t, int64_t o) {
    alignas(64) float turned[256];
    turn_pairs(reinterpret_cast<const bf16 *>(sums), 32, 16, 32, reinterpret_cast<bf16 *>(turned));
    const int64_t kept = within(p.O - o);
    V bias = {};
    if (p.bias != nullptr) bias = load(p.bias + o, kept);
    for (int64_t token = t; token < std::min(t + 16, p.T); ++token) {
        V row = load(turned + 16 * (token - t)) + bias;
        if (p.residual != nullptr) row += load(p.residual + token * p.residual_stride + o, kept);
        store(p.out + token * p.out_stride + o, row, kept);
    }
}

// One part of 32 rows of w from o, or of what is left of them; `b` and what is returned: its tokens, and those of the next part
const bf16 *few_steps(Session &tiles, const Part &part, const bf16 *b, int64_t o, bool more_rows, bool more_tokens) {
    const int64_t row_bytes = 2 * part.o_stride, second = 16 * part.o_stride;
    const bf16 *a = part.w + o * part.o_stride, *next = a + 32 * part.o_stride;
    for (int64_t step = 0; step < part.steps(); ++step, a += 32, next += 32 * 32, b += TILE) {
        for (int line = 0; line < 32; ++line) _mm_prefetch(next + 32 * line, _MM_HINT_T1);
        tiles.stream<4>(a, row_bytes);
        tiles.load<6>(b, 64);
        tiles.add<0, 4, 6>();
        if (more_rows) {
            tiles.stream<5>(a + second, row_bytes);
            tiles.add<2, 5, 6>();
        }
        if (!more_tokens) continue;
        b += TILE;
        tiles.load<7>(b, 64);
        tiles.add<1, 4, 7>();
        if (more_rows) tiles.add<3, 5, 7>();
    }
    return b;
}

void few_rows(Session &tiles, const Product &p, const bf16 *tokens, int64_t o) {
    const bool more_rows = p.O - o > 16, more_tokens = p.T > 16;
    const int64_t last = std::min<int64_t>(16, p.O - o - (more_rows ? 16 : 0));  // rows of the last tile
    alignas(64) float sums[1024];
    if (last < 16) tiles.rows(more_rows ? 1 << 5 | 1 << 2 | 1 << 3 : 1 << 4 | 1 << 0 | 1 << 1, static_cast<int>(last));
    zero_sums(tiles);
    for (int64_t i = 0; i < p.num_parts; ++i) tokens = few_steps(tiles, p.parts[i], tokens, o, more_rows, more_tokens);
    tiles.square_sums(sums);
    if (last < 16) tiles.rows(0, 16);
    for (int64_t row = 0; row < (more_rows ? 2 : 1); ++row)
        for (int64_t t = 0; t < p.T; t += 16) write_turned(p, sums + row * 512 + t / 16 * 256, t, o + 16 * row);
}

void few(const Product &p, int64_t threads) {
    bf16 *tokens = room<Here>(0, p.steps() * 2 * TILE);
    turn_tokens(p, tokens);
    const int64_t blocks = (p.O + 31) / 32, shares = std::min(4 * threads, blocks);
#pragma omp parallel num_threads(std::min(threads, shares))
    {
        Session tiles;
#pragma omp for schedule(dynamic, 1)
        for (int64_t n = 0; n < shares; ++n)
            for (int64_t block = blocks * n / shares; block < blocks * (n + 1) / shares; ++block) few_rows(tiles, p, tokens, 32 * block);
    }
}

#else
// At most FEW tokens: w is turned in registers and kept nowhere. For more `wide` is as fast.
constexpr int64_t FEW = 8;

#ifdef LUTHIER_HAS_PAIRS
constexpr int few_columns(int) { return 16; }

// 16 rows of w from o
template <int T> void few_rows(const Product &p, const float *, int64_t o) {
    __m512 sums[T];
    for (int t = 0; t < T; ++t) sums[t] = _mm512_setzero_ps();
    for (int64_t i = 0; i < p.num_parts; ++i) {
        const Part &part = p.parts[i];
        const bf16 *w = part.w + o * part.o_stride, *next = w + 16 * part.o_stride;
        for (int64_t k = 0; k < part.K; k += 32, next += 16 * 32) {
            for (int line = 0; line < 16; ++line) _mm_prefetch(next + 32 * line, FETCHED_TO);
            __m512i pairs[16];
            turn_pairs(w + k, part.o_stride, p.O - o, 32, pairs);
            for (int t = 0; t < T; ++t)
                for (int pair = 0; pair < 16; ++pair) {
                    int32_t number;
                    std::memcpy(&number, part.x + t * part.x_stride + k + 2 * pair, 4);
                    sums[t] = _mm512_dpbf16_ps(sums[t], (__m512bh)pairs[pair], (__m512bh)_mm512_set1_epi32(number));
                }
        }
    }
    alignas(64) float square[2][16][16] = {};
    for (int t = 0; t < T; ++t) _mm512_store_ps(square[0][t], sums[t]);
    write(p, square[0][0], 0, o, 16);
}
#else
// So many rows of w at once that several sums are on their way where there are few tokens: each waits for the one before it. Measured: 1.5 times
// as fast as row after row with one token
constexpr int few_columns(int tokens) { return tokens == 1 ? 32 : tokens <= 4 ? 16 : 8; }

// few_columns(T) rows of w from o; `x`: all tokens of all parts as fp32, one token behind another
template <int T> void few_rows(const Product &p, const float *x, int64_t o) {
    constexpr int GROUPS = few_columns(T) / 8;
    const __m256 odd = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000u)));
    const int64_t apart = 32 * p.steps();
    __m256 sums[GROUPS][T];
    for (int group = 0; group < GROUPS; ++group)
        for (int t = 0; t < T; ++t) sums[group][t] = _mm256_setzero_ps();
    for (int64_t i = 0; i < p.num_parts; ++i) {
        const Part &part = p.parts[i];
        const bf16 *w = part.w + o * part.o_stride, *next = w + 8 * GROUPS * part.o_stride;
        for (int64_t k = 0; k < part.K; k += 16, x += 16, next += 8 * GROUPS * 16) {
            for (int line = 0; line < 4 * GROUPS; ++line) _mm_prefetch(next + 32 * line, FETCHED_TO);
            __m256i pairs[GROUPS][8];
            for (int group = 0; group < GROUPS; ++group)
                luthier::turn_eight(w + 8 * group * part.o_stride + k, part.o_stride, p.O - o - 8 * group, 16, pairs[group]);
            for (int pair = 0; pair < 8; ++pair)
                for (int t = 0; t < T; ++t) {
                    const float *number = x + t * apart + 2 * pair;
                    const __m256 first = _mm256_broadcast_ss(number), second = _mm256_broadcast_ss(number + 1);
                    for (int group = 0; group < GROUPS; ++group) {
                        const __m256i both = _mm256_load_si256(&pairs[group][pair]);
                        sums[group][t] = _mm256_fmadd_ps(first, _mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), sums[group][t]);
                        sums[group][t] = _mm256_fmadd_ps(second, _mm256_and_ps(_mm256_castsi256_ps(both), odd), sums[group][t]);
                    }
                }
        }
    }
    alignas(64) float square[2][16][16] = {};
    for (int group = 0; group < GROUPS; ++group)
        for (int t = 0; t < T; ++t) _mm256_store_ps(square[group / 2][t] + group % 2 * 8, sums[group][t]);
    write(p, square[0][0], 0, o, 8 * GROUPS);
}
#endif

template <int T> void few(const Product &p, int64_t threads) {
    constexpr int64_t COLUMNS = few_columns(T);
    float *x = nullptr;
#ifndef LUTHIER_HAS_PAIRS
    const int64_t apart = 32 * p.steps();
    x = room<Here, float>(0, T * apart);
    for (int64_t i = 0, at = 0; i < p.num_parts; at += p.parts[i++].K)
        for (int64_t t = 0; t < T; ++t)
            for (int64_t k = 0; k < p.parts[i].K; k += 16) store(x + t * apart + at + k, load(p.parts[i].x + t * p.parts[i].x_stride + k));
#endif
    const int64_t blocks = (p.O + COLUMNS - 1) / COLUMNS, shares = std::min(4 * threads, blocks);
#pragma omp parallel for num_threads(std::min(threads, shares)) schedule(dynamic, 1)
    for (int64_t n = 0; n < shares; ++n)
        for (int64_t block = blocks * n / shares; block < blocks * (n + 1) / shares; ++block) few_rows<T>(p, x, COLUMNS * block);
}

void few(const Product &p, int64_t threads) {
    constexpr void (*ways[FEW])(const Product &, int64_t) = {few<1>, few<2>, few<3>, few<4>, few<5>, few<6>, few<7>, few<8>};
    if (p.T <= FEW) return ways[p.T - 1](p, threads);
    luthier_wide(p.parts, p.num_parts, p.T, p.O, p.bias, p.residual, p.residual_stride, p.out, p.out_stride, static_cast<int>(threads));
}
#endif

}  // namespace

extern "C" void luthier_few(const Part *parts, int64_t num_parts, int64_t T, int64_t O, const bf16 *bias, const bf16 *residual,
                            int64_t residual_stride, bf16 *out, int64_t out_stride, int threads) {
    few({parts, num_parts, T, O, bias, residual, residual_stride, out, out_stride}, threads);
}

LUTHIER_CALL(luthier_few)
#else
extern "C" void luthier_few(const void *, int64_t, int64_t, int64_t, const void *, const void *, int64_t, void *, int64_t, int) {}
#endif
