// `narrow.h` for Python: one product.

#include "narrow.h"

#ifdef LUTHIER_HAS_TILES
using luthier::bf16;

extern "C" void luthier_narrow(const bf16 *x, int64_t x_stride, int64_t T, int64_t K, const bf16 *w, int64_t k_stride, int64_t r_stride, int64_t R,
                               float scale, bf16 *out, int64_t out_stride, int threads) {
    std::deque<luthier::Narrow> one;
    one.emplace_back(luthier::NarrowProduct{x, x_stride, T, K, w, k_stride, r_stride, R, scale, out, out_stride}, 0);
    luthier::together(threads, one);
}
extern "C" void luthier_outer(const bf16 *u, int64_t u_stride, const float *t_scale, int64_t R, const bf16 *g, int64_t g_stride, int64_t T,
                              int64_t O, const bf16 *o_scale, bf16 *out, int64_t r_stride, int64_t o_stride, int threads) {
    std::deque<luthier::Outer> one;
    one.emplace_back(luthier::OuterProduct{u, u_stride, t_scale, R, g, g_stride, T, O, o_scale, out, r_stride, o_stride}, 0);
    luthier::together(threads, one);
}

LUTHIER_CALL(luthier_narrow)
LUTHIER_CALL(luthier_outer)
#else
extern "C" void luthier_narrow(const void *, int64_t, int64_t, int64_t, const void *, int64_t, int64_t, int64_t, float, void *, int64_t, int) {}
extern "C" void luthier_outer(const void *, int64_t, const void *, int64_t, const void *, int64_t, int64_t, int64_t, const void *, void *, int64_t,
                              int64_t, int) {}
#endif
