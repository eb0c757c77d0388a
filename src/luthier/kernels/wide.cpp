// `wide.h` for Python: one product.

#include "wide.h"

#ifdef LUTHIER_HAS_TILES
using luthier::bf16;
using luthier::Part;

extern "C" void luthier_wide(const Part *parts, int64_t num_parts, int64_t T, int64_t O, const bf16 *bias, const bf16 *residual,
                             int64_t residual_stride, bf16 *out, int64_t out_stride, int threads) {
    std::deque<luthier::Wide> one;
    one.emplace_back(luthier::Product{parts, num_parts, T, O, bias, residual, residual_stride, out, out_stride}, threads);
    luthier::together(threads, one);
}

LUTHIER_CALL(luthier_wide)
#else
extern "C" void luthier_wide(const void *, int64_t, int64_t, int64_t, const void *, const void *, int64_t, void *, int64_t, int) {}
#endif
