// What wide.h and few.cpp have in common: a sum of products, and how a square of it is written.
#pragma once

#include "tiles.h"

#ifdef LUTHIER_HAS_TILES
namespace luthier {

#ifdef LUTHIER_HAS_AMX
constexpr auto FETCHED_TO = _MM_HINT_T0;
#else
constexpr auto FETCHED_TO = _MM_HINT_T1;  // the first level is too small for what is laid out and what comes next
#endif

struct Product {
    const Part *parts;
    int64_t num_parts, T, O;
    const bf16 *bias, *residual;
    int64_t residual_stride;
    bf16 *out;
    int64_t out_stride;
    int64_t steps() const {
        int64_t sum = 0;
        for (int64_t i = 0; i < num_parts; ++i) sum += parts[i].steps();
        return sum;
    }
};

// 32 tokens and 32 columns of sums, [2][2][16][16], to out
inline void write(const Product &p, const float *sums, int64_t t, int64_t o, int64_t columns = 32) {
    const int64_t rows = std::min<int64_t>(32, p.T - t), kept = std::min(columns, p.O - o), kept_low = within(kept), kept_high = within(kept - 16);
    V bias_low = {}, bias_high = {};
    if (p.bias != nullptr) bias_low = load(p.bias + o, kept_low), bias_high = load(p.bias + o + 16, kept_high);
    for (int64_t row = 0; row < rows; ++row) {
        const float *from = sums + (row / 16) * 512 + (row % 16) * 16;
        V low = load(from) + bias_low, high = load(from + 256) + bias_high;
        if (p.residual != nullptr) {
            const bf16 *also = p.residual + (t + row) * p.residual_stride + o;
            low += load(also, kept_low), high += load(also + 16, kept_high);
        }
        store_line(p.out + (t + row) * p.out_stride + o, low, high, kept);
    }
}

}  // namespace luthier
#endif
