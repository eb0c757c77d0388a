// A decoder layer but for its attention, for at most 32 tokens: two calls instead of twenty; or all layers in one, where each token is the next
// of a row of its own. While one token after another is written, calling the operations one by one from Python takes as long as reading the
// weights. The operations are those of fused.cpp and wide.h, in the order
// in which fast_body.py calls them: results are bit-equal.

#include "tiles.h"

#ifdef LUTHIER_HAS_TILES

using luthier::bf16;
using luthier::load;
using luthier::Part;
using luthier::room;
using luthier::store;

extern "C" void luthier_few(const Part *, int64_t, int64_t, int64_t, const bf16 *, const bf16 *, int64_t, bf16 *, int64_t, int);
extern "C" void luthier_rms_norm_bf16(const bf16 *, const bf16 *, bf16 *, float *, int64_t, int64_t, float, int);
extern "C" void luthier_rotate_bf16(const bf16 *, const bf16 *, const bf16 *, bf16 *, int64_t, int64_t, int64_t, int64_t, float, int);
extern "C" void luthier_step_attention(const bf16 *, const bf16 *, const bf16 *, int64_t, bf16 *, bf16 *, const int64_t *, int64_t, int64_t, int64_t,
                                       int64_t, int64_t, float, bf16 *, float *, int);
extern "C" void luthier_swiglu_bf16(const bf16 *, const bf16 *, bf16 *, int64_t, int64_t, int64_t, int);

namespace {

struct Here;

// Layers that read the same input, [O, K], and an adapter: B (scale * A h), b [O, R], a [R, K], scale [R]. R is 0 where there is none.
struct Joined {
    const bf16 *w;
    int64_t O, K;
    const bf16 *bias, *a;
    int64_t R;
    const bf16 *scale, *b;
};

struct Layer {
    Joined qkv, o, gate_up, down;
    const bf16 *norm1, *norm2;
};

void apply(const Joined &layer, const bf16 *x, int64_t T, const bf16 *residual, bf16 *out, int threads) {
    Part parts[2] = {{x, layer.K, layer.K, layer.w, 1, layer.K}, {}};
    if (layer.R > 0) {
        bf16 *u = room<Here>(0, T * layer.R);
        const Part into_rank{x, layer.K, layer.K, layer.a, 1, layer.K};
        luthier_few(&into_rank, 1, T, layer.R, nullptr, nullptr, 0, u, layer.R, threads);
        for (int64_t t = 0; t < T; ++t)
            for (int64_t r = 0; r < layer.R; r += 16) {  // ranks are whole thirty-twos
                bf16 *numbers = u + t * layer.R + r;
                store(numbers, load(numbers) * load(layer.scale + r));
            }
        parts[1] = parts[0];
        parts[0] = {u, layer.R, layer.R, layer.b, 1, layer.R};
    }
    luthier_few(parts, layer.R > 0 ? 2 : 1, T, layer.O, layer.bias, residual, layer.O, out, layer.O, threads);
}

const bf16 *norm(const bf16 *x, const bf16 *weight, int64_t T, int64_t width, float eps, int threads) {
    float inverse[32];
    bf16 *h = room<Here>(1, T * width);
    luthier_rms_norm_bf16(x, weight, h, inverse, T, width, eps, threads);
    return h;
}

}  // namespace

extern "C" void luthier_layer_in(const Layer *layer, const bf16 *x, int64_t T, float eps, const bf16 *cos, const bf16 *sin, int64_t size,
                                 int64_t values, bf16 *out, int threads) {
    const int64_t heads = layer->qkv.O / size;
    bf16 *raw = room<Here>(2, T * layer->qkv.O);
    apply(layer->qkv, norm(x, layer->norm1, T, layer->qkv.K, eps, threads), T, nullptr, raw, threads);
    luthier_rotate_bf16(raw, cos, sin, out, T, heads, heads - values, size, 1.0f, threads);
}

extern "C" void luthier_layer_out(const Layer *layer, const bf16 *attended, const bf16 *x, int64_t T, float eps, bf16 *out, int threads) {
    const int64_t E = layer->o.O, F = layer->down.K;
    bf16 *x1 = room<Here>(2, T * E), *both = room<Here>(3, T * 3 * F), *s = both + T * 2 * F;
    apply(layer->o, attended, T, x, x1, threads);
    apply(layer->gate_up, norm(x1, layer->norm2, T, E, eps, threads), T, nullptr, both, threads);
    luthier_swiglu_bf16(both, both + F, s, T, F, 2 * F, threads);
    apply(layer->down, s, T, x1, out, threads);
}

// `store` [count, 2, rows, C, K, D] gets the new tokens' keys and values at place `slot` of (row, column); out [R, E]
extern "C" void luthier_few_layers(const Layer *const *layers, int64_t count, const bf16 *x, int64_t R, float eps, const bf16 *cos, const bf16 *sin,
                                   bf16 *store, int64_t rows, int64_t C, const int64_t *slot, int64_t H, int64_t K, int64_t D, float scale,
                                   bf16 *out, int threads) {
    const int64_t E = layers[0]->o.O, S = H + 2 * K, part = rows * C * K * D;
    bf16 *heads = room<Here>(4, R * S * D), *attended = room<Here>(5, R * H * D), *before = room<Here>(6, R * E);
    float *log_sums = room<Here, float>(0, R * H);
    std::memcpy(before, x, 2 * R * E);
    for (int64_t n = 0; n < count; ++n, store += 2 * part) {
        luthier_layer_in(layers[n], before, R, eps, cos, sin, D, K, heads, threads);
        luthier_step_attention(heads, heads + H * D, heads + (H + K) * D, S * D, store, store + part, slot, R, C, H, K, D, scale, attended, log_sums,
                               threads);
        luthier_layer_out(layers[n], attended, before, R, eps, out, threads);
        std::memcpy(before, out, 2 * R * E);
    }
}

LUTHIER_CALL(luthier_layer_in)
LUTHIER_CALL(luthier_layer_out)
LUTHIER_CALL(luthier_few_layers)
#else
extern "C" void luthier_few_layers(const void *, int64_t, const void *, int64_t, float, const void *, const void *, void *, int64_t, int64_t,
                                   const void *, int64_t, int64_t, int64_t, float, void *, int) {}
extern "C" void luthier_layer_in(const void *, const void *, int64_t, float, const void *, const void *, int64_t, int64_t, void *, int) {}
extern "C" void luthier_layer_out(const void *, const void *, const void *, int64_t, float, void *, int) {}
#endif
