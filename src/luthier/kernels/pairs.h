// bf16 numbers laid out as the tiles read them (`tiles.h`): pairs of neighbouring rows, or rows turned; and lines of 32 of them. With AVX-512, and
// with AVX2 where that is missing.
#pragma once

#include "sixteen.h"

#if defined(LUTHIER_HAS_AVX512) && defined(__AVX512BF16__)
#define LUTHIER_HAS_TILES
#define LUTHIER_HAS_PAIRS
#elif !defined(LUTHIER_HAS_AVX512) && defined(__AVX2__) && defined(__FMA__)
#define LUTHIER_HAS_TILES
#endif

#ifdef LUTHIER_HAS_TILES
#include <algorithm>

namespace luthier {

// Up to 16 numbers of a row that may be longer, or at its end
inline int64_t within(int64_t count) { return std::clamp<int64_t>(count, 0, W); }

// 32 numbers with their `count` first ones, zeros behind
#ifdef LUTHIER_HAS_PAIRS
inline __mmask32 mask32(int64_t count) { return count >= 32 ? 0xffffffffu : count <= 0 ? 0u : (1u << count) - 1u; }
inline void copy_line(bf16 *to, const bf16 *from, int64_t count) { _mm512_store_si512(to, _mm512_maskz_loadu_epi16(mask32(count), from)); }
inline void store_line(bf16 *to, V low, V high, int64_t count) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh(cast<__m512>(high), cast<__m512>(low));
    _mm512_mask_storeu_epi16(to, mask32(count), cast<__m512i>(rounded));
}
// The sum and the products of 32 numbers
inline V add_products(V sum, const bf16 *a, const bf16 *b) {
    return cast<V>(_mm512_dpbf16_ps(cast<__m512>(sum), cast<__m512bh>(_mm512_loadu_si512(a)), cast<__m512bh>(_mm512_loadu_si512(b))));
}

// Rows t and t + 1 of g, 32 columns of each, as pairs: columns 0 to 15 into `low`, 16 to 31 into `high`; 16 pairs. Rows past `rows`, columns past
// `columns` are 0.
inline void pair_rows(const bf16 *g, int64_t g_stride, int64_t rows, int64_t columns, bf16 *low, bf16 *high) {
    alignas(64) static const uint16_t order[2][32] = {
        {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
        {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
    const __m512i first = _mm512_load_si512(order[0]), second = _mm512_load_si512(order[1]);
    const __mmask32 kept = mask32(columns);
    for (int64_t p = 0; p < 16; ++p) {
        const __m512i even = 2 * p < rows ? _mm512_maskz_loadu_epi16(kept, g + 2 * p * g_stride) : _mm512_setzero_si512();
        const __m512i odd = 2 * p + 1 < rows ? _mm512_maskz_loadu_epi16(kept, g + (2 * p + 1) * g_stride) : _mm512_setzero_si512();
        _mm512_store_si512(low + 32 * p, _mm512_permutex2var_epi16(even, first, odd));
        _mm512_store_si512(high + 32 * p, _mm512_permutex2var_epi16(even, second, odd));
    }
}

// 16 rows of w^T, 32 numbers of each, to 16 pairs of k: a 16 x 16 transpose of pairs, in four rounds of two inputs each. Rows past `rows`,
// numbers past `count` are 0.
inline void turn_pairs(const bf16 *w, int64_t o_stride, int64_t rows, int64_t count, __m512i *pairs) {
    __m512i a[16], b[16];
    const __mmask32 kept = mask32(count);
    for (int64_t r = 0; r < 16; ++r) a[r] = r < rows ? _mm512_maskz_loadu_epi16(kept, w + r * o_stride) : _mm512_setzero_si512();
    for (int r = 0; r < 16; r += 2) b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]), b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
    for (int r = 0; r < 16; r += 4) {
        a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]), a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
        a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]), a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
    for (int r = 0; r < 4; ++r) {  // rows 0-3 with 4-7, 8-11 with 12-15: quarters 0, 2 and 1, 3
        b[r] = _mm512_shuffle_i32x4(a[r], a[r + 4], 0x88), b[r + 4] = _mm512_shuffle_i32x4(a[r], a[r + 4], 0xdd);
        b[r + 8] = _mm512_shuffle_i32x4(a[r + 8], a[r + 12], 0x88), b[r + 12] = _mm512_shuffle_i32x4(a[r + 8], a[r + 12], 0xdd);
    }
    for (int r = 0; r < 4; ++r) {
        pairs[r] = _mm512_shuffle_i32x4(b[r], b[r + 8], 0x88), pairs[r + 8] = _mm512_shuffle_i32x4(b[r], b[r + 8], 0xdd);
        pairs[r + 4] = _mm512_shuffle_i32x4(b[r + 4], b[r + 12], 0x88), pairs[r + 12] = _mm512_shuffle_i32x4(b[r + 4], b[r + 12], 0xdd);
    }
}

inline void turn_pairs(const bf16 *w, int64_t o_stride, int64_t rows, int64_t count, bf16 *tile) {
    __m512i pairs[16];
    turn_pairs(w, o_stride, rows, count, pairs);
    for (int64_t p = 0; p < 16; ++p) _mm512_store_si512(tile + 32 * p, pairs[p]);
}
#else
inline void copy_line(bf16 *to, const bf16 *from, int64_t count) {
    count = std::clamp<int64_t>(count, 0, 32);
    if (count == 32) std::memcpy(to, from, 64);
    else std::memcpy(to, from, 2 * count), std::memset(to + count, 0, 2 * (32 - count));
}
inline void store_line(bf16 *to, V low, V high, int64_t count) {
    store(to, low, within(count));
    if (count > W) store(to + W, high, within(count - W));
}
// The sum and the products of 32 numbers
inline V add_products(V sum, const bf16 *a, const bf16 *b) { return load(a + W) * load(b + W) + (load(a) * load(b) + sum); }

// 16 numbers, of which `count` are there
inline __m256i half_line(const bf16 *from, int64_t count) {
    if (count >= W) return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
    alignas(32) bf16 some[W] = {};
    if (count > 0) std::memcpy(some, from, 2 * count);
    return _mm256_load_si256(reinterpret_cast<const __m256i *>(some));
}

// Rows t and t + 1 of g, 32 columns of each, as pairs: columns 0 to 15 into `low`, 16 to 31 into `high`; 16 pairs. Rows past `rows`, columns past
// `columns` are 0.
inline void pair_rows(const bf16 *g, int64_t g_stride, int64_t rows, int64_t columns, bf16 *low, bf16 *high) {
    for (int64_t p = 0; p < 16; ++p)
        for (int64_t half = 0; half < 2; ++half) {
            const bf16 *from = g + 2 * p * g_stride + W * half;
            const __m256i even = half_line(from, 2 * p < rows ? columns - W * half : 0);
            const __m256i odd = half_line(from + g_stride, 2 * p + 1 < rows ? columns - W * half : 0);
            const __m256i a = _mm256_unpacklo_epi16(even, odd), b = _mm256_unpackhi_epi16(even, odd);
            __m256i *to = reinterpret_cast<__m256i *>((half == 0 ? low : high) + 32 * p);
            _mm256_storeu_si256(to, _mm256_permute2x128_si256(a, b, 0x20));
            _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(a, b, 0x31));
        }
}

// 8 rows of w^T, 16 numbers of each, to 8 pairs of k. Rows past `rows`, numbers past `count` are 0.
inline void turn_eight(const bf16 *w, int64_t o_stride, int64_t rows, int64_t count, __m256i *pairs) {
    __m256i a[8], b[8];
    for (int64_t r = 0; r < 8; ++r) a[r] = half_line(w + r * o_stride, r < rows ? count : 0);
    for (int r = 0; r < 8; r += 2) b[r] = _mm256_unpacklo_epi32(a[r], a[r + 1]), b[r + 1] = _mm256_unpackhi_epi32(a[r], a[r + 1]);
    for (int r = 0; r < 8; r += 4) {
        a[r] = _mm256_unpacklo_epi64(b[r], b[r + 2]), a[r + 1] = _mm256_unpackhi_epi64(b[r], b[r + 2]);
        a[r + 2] = _mm256_unpacklo_epi64(b[r + 1], b[r + 3]), a[r + 3] = _mm256_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
    for (int r = 0; r < 4; ++r) {
        pairs[r] = _mm256_permute2x128_si256(a[r], a[r + 4], 0x20);
        pairs[r + 4] = _mm256_permute2x128_si256(a[r], a[r + 4], 0x31);
    }
}

// 16 rows of w^T, 32 numbers of each, to 16 pairs of k
inline void turn_pairs(const bf16 *w, int64_t o_stride, int64_t rows, int64_t count, bf16 *tile) {
    for (int64_t k = 0; k < 32; k += 16)
        for (int64_t r = 0; r < 16; r += 8) {
            __m256i pairs[8];
            turn_eight(w + r * o_stride + k, o_stride, rows - r, count - k, pairs);
            for (int64_t p = 0; p < 8; ++p) _mm256_storeu_si256(reinterpret_cast<__m256i *>(tile + 32 * (k / 2 + p) + 2 * r), pairs[p]);
        }
}
#endif

}  // namespace luthier
#endif
