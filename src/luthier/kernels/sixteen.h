// Sixteen numbers at once: fp32 in registers; fp32 or bf16 in memory. One register of AVX-512; elsewhere several (AVX2, NEON, SSE), each in the
// vector extension that GCC and Clang share. Compilers take a vector that is wider than the machine's apart number by number wherever two
// are compared, ten times as slow as this.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define LUTHIER_HAS_AVX512
#endif
#if defined(__AVX2__) || defined(LUTHIER_HAS_AVX512)
#include <immintrin.h>
#endif

namespace luthier {

using bf16 = uint16_t;

constexpr int64_t W = 16;

template <typename To, typename From> inline To cast(const From &from) {
    static_assert(sizeof(To) == sizeof(From), "same bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

#ifdef LUTHIER_HAS_AVX512
typedef float V __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint16_t H __attribute__((vector_size(32)));

// Of sixteen numbers the first n; whole ones need no mask.
inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline V load(const float *from, int64_t n = W) {
    return n == W ? cast<V>(_mm512_loadu_ps(from)) : cast<V>(_mm512_maskz_loadu_ps(first(n), from));
}
inline V load(const bf16 *from, int64_t n = W) {
    const __m256i bits = n == W ? _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)) : _mm256_maskz_loadu_epi16(first(n), from);
    return cast<V>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline void store(float *to, V v, int64_t n = W) {
    if (n == W) _mm512_storeu_ps(to, cast<__m512>(v));
    else _mm512_mask_storeu_ps(to, first(n), cast<__m512>(v));
}
inline void put_bits(bf16 *to, H h, int64_t n) {
    if (n == W) _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), cast<__m256i>(h));
    else _mm256_mask_storeu_epi16(to, first(n), cast<__m256i>(h));
}
// Round to nearest even; a NaN stays one.
inline void store(bf16 *to, V v, int64_t n = W) {
#ifdef __AVX512BF16__
    put_bits(to, cast<H>(_mm512_cvtneps_pbh(cast<__m512>(v))), n);
#else
    const U u = cast<U>(v);
    const U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const U nan = (u >> 16) | 0x40u;
    put_bits(to, __builtin_convertvector(v == v ? rounded : nan, H), n);
#endif
}
inline V all(float f) { return cast<V>(_mm512_set1_ps(f)); }
// The first n lanes, all or none of them too; the others become `filler`.
inline V only(V v, int64_t n, float filler) {
    const I lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lane < static_cast<int32_t>(n) ? v : V{} + filler;
}
// The second where neither is larger, or one is no number
inline V larger(V a, V b) { return a > b ? a : b; }
inline V root(V v) { return cast<V>(_mm512_sqrt_ps(cast<__m512>(v))); }
inline float total(V v) {
    float sum = 0.0f;
    for (int64_t j = 0; j < W; ++j) sum += v[j];
    return sum;
}
inline float largest(V v) { return _mm512_reduce_max_ps(cast<__m512>(v)); }
// The sum in the processor's order: shorter than one number after another
inline float total_in_halves(V v) { return _mm512_reduce_add_ps(cast<__m512>(v)); }

// 2^n times a polynomial of the rest, |rest| <= 1/2 of a power of two. Relative error below 2e-6 where exp(x) is a normal number, and below
// 2e-7 near 0; 0 far below, infinite above 88.7. NaN stays NaN.
inline V exp(V x) {
    const __m512 log2_e = _mm512_set1_ps(1.44269504088896341f);
    const __m512 v = _mm512_max_ps(_mm512_set1_ps(-1000.0f), cast<__m512>(x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(v, log2_e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_fmsub_ps(v, log2_e, n);
    __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(1.5403530e-4f), _mm512_set1_ps(1.3333558e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return cast<V>(_mm512_scalef_ps(p, n));
}
// 1 / d for d from 1 to 1e35 by a guess and steps of Newton, each of which squares the error: a division takes longer.
inline V inverse_of(V d) {
    const V r = cast<V>(_mm512_rcp14_ps(cast<__m512>(d)));
    return r * (2.0f - d * r);
}

#else
#ifdef __AVX2__
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int LANES = BYTES / 4, PARTS = 16 / LANES;
typedef float P __attribute__((vector_size(BYTES)));
typedef int32_t PI __attribute__((vector_size(BYTES)));
typedef uint32_t PU __attribute__((vector_size(BYTES)));
typedef uint16_t PH __attribute__((vector_size(BYTES / 2)));

struct V {
    P part[PARTS];
};

template <typename Each> inline V each(Each part) {
    V v;
    for (int i = 0; i < PARTS; ++i) v.part[i] = part(i);
    return v;
}
inline V operator+(V a, V b) { return each([&](int i) { return a.part[i] + b.part[i]; }); }
inline V operator-(V a, V b) { return each([&](int i) { return a.part[i] - b.part[i]; }); }
inline V operator*(V a, V b) { return each([&](int i) { return a.part[i] * b.part[i]; }); }
inline V operator/(V a, V b) { return each([&](int i) { return a.part[i] / b.part[i]; }); }
inline V operator-(V a) { return each([&](int i) { return -a.part[i]; }); }
inline V all(float f) { return each([&](int) { return f - P{}; }); }
inline V operator+(V a, float b) { return a + all(b); }
inline V operator-(V a, float b) { return a - all(b); }
inline V operator*(V a, float b) { return a * all(b); }
inline V operator/(V a, float b) { return a / all(b); }
inline V operator+(float a, V b) { return all(a) + b; }
inline V operator-(float a, V b) { return all(a) - b; }
inline V operator*(float a, V b) { return all(a) * b; }
inline V &operator+=(V &a, V b) { return a = a + b; }

inline V load(const float *from, int64_t n = W) {
    float some[W] = {};
    if (n != W) std::memcpy(some, from, n * 4), from = some;
    return each([&](int i) {
        P part;
        std::memcpy(&part, from + i * LANES, sizeof part);
        return part;
    });
}
inline V load(const bf16 *from, int64_t n = W) {
    bf16 some[W] = {};
    if (n != W) std::memcpy(some, from, n * 2), from = some;
    return each([&](int i) {
#ifdef __AVX2__
        return cast<P>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from + i * LANES))), 16));
#else
        PH h;
        std::memcpy(&h, from + i * LANES, sizeof h);
        return cast<P>(__builtin_convertvector(h, PU) << 16);
#endif
    });
}
inline void store(float *to, V v, int64_t n = W) {
    if (n != W) return void(std::memcpy(to, &v, n * 4));
    for (int i = 0; i < PARTS; ++i) std::memcpy(to + i * LANES, &v.part[i], sizeof(P));
}
// Round to nearest even; a NaN stays one.
inline void store(bf16 *to, V v, int64_t n = W) {
    PU rounded[PARTS];
    for (int i = 0; i < PARTS; ++i) {
        const PU u = cast<PU>(v.part[i]), high = u >> 16, is_number = cast<PU>(v.part[i] == v.part[i]);
        rounded[i] = (((u + (0x7fffu + (high & 1u))) >> 16) & is_number) | ((high | 0x40u) & ~is_number);
    }
    bf16 some[W];
    bf16 *where = n == W ? to : some;
#ifdef __AVX2__
    const __m256i packed = _mm256_packus_epi32(cast<__m256i>(rounded[0]), cast<__m256i>(rounded[1]));  // each half of both
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(where), _mm256_permute4x64_epi64(packed, 0xd8));
#else
    for (int i = 0; i < PARTS; ++i) {
        const PH h = __builtin_convertvector(rounded[i], PH);
        std::memcpy(where + i * LANES, &h, sizeof h);
    }
#endif
    if (n != W) std::memcpy(to, some, n * 2);
}
// The first n lanes, all or none of them too; the others become `filler`.
inline V only(V v, int64_t n, float filler) {
    alignas(64) static const int32_t lanes[W] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return each([&](int i) {
        PI lane;
        std::memcpy(&lane, lanes + i * LANES, sizeof lane);
        return lane < static_cast<int32_t>(n) ? v.part[i] : filler - P{};
    });
}
// The second where neither is larger, or one is no number
inline V larger(V a, V b) { return each([&](int i) { return a.part[i] > b.part[i] ? a.part[i] : b.part[i]; }); }
inline V root(V v) {
    float numbers[W];
    std::memcpy(numbers, &v, sizeof numbers);
    for (float &number : numbers) number = std::sqrt(number);
    std::memcpy(&v, numbers, sizeof numbers);
    return v;
}
inline float total(V v) {
    float sum = 0.0f;
    for (int64_t j = 0; j < W; ++j) sum += v.part[j / LANES][j % LANES];
    return sum;
}
// Halves joined until one number is left: shorter than one after another
template <typename Join> inline float in_halves(V v, Join join) {
    for (int half = PARTS / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) v.part[i] = join(v.part[i], v.part[i + half]);
    float numbers[LANES];
    std::memcpy(numbers, &v.part[0], sizeof numbers);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) numbers[i] = join(numbers[i], numbers[i + half]);
    return numbers[0];
}
inline float total_in_halves(V v) {
    return in_halves(v, [](auto a, auto b) { return a + b; });
}
inline float largest(V v) {
    return in_halves(v, [](auto a, auto b) { return a > b ? a : b; });
}

// 2^n times a polynomial of the rest, |rest| <= 1/2 of a power of two. Relative error below 2e-6; 0 below -87.3, NaN stays NaN.
inline V exp(V x) {
    return each([&](int i) {
        const P low = -87.33654f - P{}, high = 88.7f - P{}, v = x.part[i];
        const P clipped = v < low ? low : (v > high ? high : v);
        const P shifted = clipped * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number
        const P n = shifted - 12582912.0f;
        const P r = clipped - n * 0.693359375f + n * 2.12194440e-4f;
        P p = r * 1.9875691500e-4f + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * (r * r) + r + 1.0f;
        const P scale = cast<P>((cast<PI>(shifted) - 0x4b400000 + 127) << 23);
        return v < low ? P{} : p * scale;
    });
}
// 1 / d for d from 1 to 1e35 by a guess and steps of Newton, each of which squares the error: a division takes longer.
inline V inverse_of(V d) {
    return each([&](int i) {
        P r = cast<P>(0x7ef311c7 - cast<PI>(d.part[i]));
        for (int step = 0; step < 3; ++step) r *= 2.0f - d.part[i] * r;
        return r;
    });
}
#endif

inline float one(const float *from) { return *from; }
inline float one(const bf16 *from) { return cast<float>(static_cast<uint32_t>(*from) << 16); }
template <typename T> inline void put(T *to, float f) { store(to, all(f), 1); }

}  // namespace luthier
