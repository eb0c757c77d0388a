// exp of sixteen numbers, for the files that know AVX-512.
#pragma once

#ifdef __AVX512F__
#include <immintrin.h>

namespace luthier {

// 2^n times a polynomial of the rest, |rest| <= 1/2 of a power of two. Relative error below 2e-6 where exp(x) is a normal number, and below
// 2e-7 near 0; 0 far below, infinite above 88.7. NaN stays NaN.
inline __m512 exp(__m512 x) {
    const __m512 log2_e = _mm512_set1_ps(1.44269504088896341f);
    const __m512 v = _mm512_max_ps(_mm512_set1_ps(-1000.0f), x);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(v, log2_e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_fmsub_ps(v, log2_e, n);
    __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(1.5403530e-4f), _mm512_set1_ps(1.3333558e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

}  // namespace luthier
#endif
