// A decoder layer with adapters, forward and backward, in two calls instead of seventy, or in four where attention is computed between them: at a
// few hundred tokens an update spends a third of its time between the calls. The operations are those of fused.cpp, narrow.cpp, wide.cpp and
// tiled_attention.cpp, in the order in which decoder_layer.py calls them; results are bit-equal, but for the gradient of a whole layer's input,
// which is rounded once instead of twice. That file has the formulas; E hidden, F feed-forward width, S = H + 2K heads of size D, R rank, T tokens.

#include "tiles.h"

#ifdef LUTHIER_HAS_TILES

using luthier::bf16;
using luthier::Part;
using luthier::room;

extern "C" {
void luthier_wide(const Part *, int64_t, int64_t, int64_t, const bf16 *, const bf16 *, int64_t, bf16 *, int64_t, int);
void luthier_narrow(const bf16 *, int64_t, int64_t, int64_t, const bf16 *, int64_t, int64_t, int64_t, float, bf16 *, int64_t, int);
void luthier_outer(const bf16 *, int64_t, const float *, int64_t, const bf16 *, int64_t, int64_t, int64_t, const bf16 *, bf16 *, int64_t, int64_t,
                   int);
void luthier_rms_norm_bf16(const bf16 *, const bf16 *, bf16 *, float *, int64_t, int64_t, float, int);
void luthier_rms_norm_backward_bf16(const bf16 *, const bf16 *, const bf16 *, const float *, const bf16 *, bf16 *, int64_t, int64_t, int);
void luthier_rotate_bf16(const bf16 *, const bf16 *, const bf16 *, bf16 *, int64_t, int64_t, int64_t, int64_t, float, int);
void luthier_swiglu_bf16(const bf16 *, const bf16 *, bf16 *, int64_t, int64_t, int64_t, int);
void luthier_swiglu_backward_bf16(bf16 *, const bf16 *, const bf16 *, bf16 *, bf16 *, int64_t, int64_t, int);
void luthier_tree_attention(const bf16 *, const int64_t *, int64_t, int64_t, int64_t, int64_t, int64_t, float, bf16 *, int);
void luthier_tree_attention_backward(const bf16 *, const int64_t *, int64_t, int64_t, int64_t, int64_t, int64_t, float, const bf16 *, bf16 *, int);
}

namespace {

struct Here;

// A frozen linear layer [O, K] and its adapter, a [R, K] and b [O, R]; where the gradients of a and b go
struct Adapted {
    const bf16 *w;
    int64_t O, K;
    const bf16 *bias, *a, *b;
    int64_t R;
    bf16 *grad_a, *grad_b;
    double scale;
};

// What the second half keeps for its way back; [T, ...]
struct Kept {
    bf16 *u;  // scale * A h of o, gate, up, down: one [T, R] after another
    bf16 *x1;
    float *r;
    bf16 *gate, *up;
};

// What a whole layer needs besides q, k, v, o, gate, up and down
struct Around {
    const bf16 *norm1, *norm2, *cos, *sin;
    const int64_t *segments;  // see tiled_attention.cpp
    int64_t num_segments, P, H, K, D;
    double eps1, eps2, scaling;
};

int64_t ranks(const Adapted *layers, int count) {
    int64_t sum = 0;
    for (int n = 0; n < count; ++n) sum += layers[n].R;
    return sum;
}

int64_t widths(const Adapted *layers, int count) {
    int64_t sum = 0;
    for (int n = 0; n < count; ++n) sum += layers[n].O;
    return sum;
}

// u = scale * A h
void into_rank(const Adapted &layer, const bf16 *h, int64_t T, bf16 *u, int64_t u_stride, int threads) {
    luthier_narrow(h, layer.K, T, layer.K, layer.a, 1, layer.K, layer.R, static_cast<float>(layer.scale), u, u_stride, threads);
}

// B u + W h + b + residual
void linear(const Adapted &layer, const bf16 *h, const bf16 *u, int64_t u_stride, int64_t T, const bf16 *residual, bf16 *out, int64_t out_stride,
            int threads) {
    const Part parts[2] = {{u, u_stride, layer.R, layer.b, 1, layer.R}, {h, layer.K, layer.K, layer.w, 1, layer.K}};
    luthier_wide(parts, 2, T, layer.O, layer.bias, residual, layer.O, out, out_stride, threads);
}

// Through layers that read the same input, g [T, O] of each: dh of that input, c = scale * g B of all [T, sum of R], dB of each
void backward(const Adapted *layers, int count, const bf16 *const *g, const int64_t *g_strides, const bf16 *const *u, const int64_t *u_strides,
              int64_t T, bf16 *c, bf16 *dh, int threads) {
    const int64_t R = ranks(layers, count), K = layers[0].K;
    bf16 *a = room<Here>(0, R * K);
    std::vector<Part> parts(1);
    for (int64_t n = 0, at = 0; n < count; at += layers[n++].R) {
        const Adapted &layer = layers[n];
        luthier_narrow(g[n], g_strides[n], T, layer.O, layer.b, layer.R, 1, layer.R, static_cast<float>(layer.scale), c + at, R, threads);
        luthier_outer(u[n], u_strides[n], nullptr, layer.R, g[n], g_strides[n], T, layer.O, nullptr, layer.grad_b, 1, layer.R, threads);
        std::memcpy(a + at * K, layer.a, 2 * layer.R * K);
        parts.push_back({g[n], g_strides[n], layer.O, layer.w, K, 1});
    }
    parts[0] = {c, R, R, a, K, 1};
    luthier_wide(parts.data(), count + 1, T, K, nullptr, nullptr, 0, dh, K, threads);
}

// dA of each from c and the layers' input: h, or x with h = r * x * w
void grads_a(const Adapted *layers, int count, const bf16 *c, const bf16 *x, const float *r, const bf16 *norm, int64_t T, int threads) {
    const int64_t R = ranks(layers, count), K = layers[0].K;
    luthier_outer(c, R, r, R, x, K, T, K, norm, layers[0].grad_a, K, 1, threads);  // those of layers with one input lie one behind another
}

// All that a whole layer keeps, in one piece of each kind: as `kept_numbers` of adapted_layer.py counts
struct AllKept {
    bf16 *heads, *attended, *u_in;
    float *r_in;
    Kept out;

    AllKept(bf16 *at, float *r, const Adapted *layers, const Around &around, int64_t T) : heads(at), r_in(r) {
        attended = heads + T * (around.H + 2 * around.K) * around.D;
        u_in = attended + T * around.H * around.D;
        out.u = u_in + T * ranks(layers, 3);
        out.x1 = out.u + T * ranks(layers + 3, 4);
        out.gate = out.x1 + T * layers[0].K;
        out.up = out.gate + T * layers[4].O;
        out.r = r + T;
    }
};

}  // namespace

// q, k, v: rotated heads [T, S, D] of the normalised x; for the way back 1 / rms of x [T] and u [T, 3 * R]
extern "C" void luthier_adapted_in(const Adapted *layers, const bf16 *norm, float eps, const bf16 *x, int64_t T, const bf16 *cos, const bf16 *sin,
                                   int64_t D, bf16 *out, float *r, bf16 *u, int threads) {
    const int64_t E = layers[0].K, S = widths(layers, 3), R = ranks(layers, 3);
    bf16 *h = room<Here>(1, T * E), *raw = room<Here>(2, T * S);
    luthier_rms_norm_bf16(x, norm, h, r, T, E, eps, threads);
    for (int64_t n = 0, o = 0, at = 0; n < 3; o += layers[n].O, at += layers[n++].R) {
        into_rank(layers[n], h, T, u + at, R, threads);
        linear(layers[n], h, u + at, R, T, nullptr, raw + o, S, threads);
    }
    luthier_rotate_bf16(raw, cos, sin, out, T, S / D, (layers[0].O + layers[1].O) / D, D, 1.0f, threads);
}

// `g` [T, S, D] is of what `adapted_in` answered; `residual` [T, E], if any, is what else x got
extern "C" void luthier_adapted_in_backward(const Adapted *layers, const bf16 *norm, const bf16 *x, int64_t T, const bf16 *cos, const bf16 *sin,
                                            int64_t D, const float *r, const bf16 *u, const bf16 *g, const bf16 *residual, bf16 *dx, int threads) {
    const int64_t E = layers[0].K, S = widths(layers, 3), R = ranks(layers, 3);
    bf16 *dh = room<Here>(1, T * E), *turned = room<Here>(2, T * S), *c = room<Here>(3, T * R);
    luthier_rotate_bf16(g, cos, sin, turned, T, S / D, (layers[0].O + layers[1].O) / D, D, -1.0f, threads);
    const bf16 *of[3] = {turned, turned + layers[0].O, turned + layers[0].O + layers[1].O};
    const bf16 *us[3] = {u, u + layers[0].R, u + layers[0].R + layers[1].R};
    const int64_t strides[3] = {S, S, S}, u_strides[3] = {R, R, R};
    backward(layers, 3, of, strides, us, u_strides, T, c, dh, threads);
    grads_a(layers, 3, c, x, r, norm, T, threads);
    if (dx != nullptr) luthier_rms_norm_backward_bf16(dh, x, norm, r, residual, dx, T, E, threads);
}

// o, gate, up, down: what the layer answers, [T, E]
extern "C" void luthier_adapted_out(const Adapted *layers, const bf16 *norm, float eps, const bf16 *x, const bf16 *attended, int64_t T,
                                    const Kept *kept, bf16 *out, int threads) {
    const Adapted &o = layers[0], &gate = layers[1], &up = layers[2], &down = layers[3];
    const int64_t E = o.O, F = gate.O, both = gate.R + up.R;
    bf16 *h = room<Here>(1, T * E), *s = room<Here>(2, T * F), *u_both = kept->u + T * o.R, *u_down = u_both + T * both;
    into_rank(o, attended, T, kept->u, o.R, threads);
    linear(o, attended, kept->u, o.R, T, x, kept->x1, E, threads);
    luthier_rms_norm_bf16(kept->x1, norm, h, kept->r, T, E, eps, threads);
    into_rank(gate, h, T, u_both, both, threads);
    into_rank(up, h, T, u_both + gate.R, both, threads);
    linear(gate, h, u_both, both, T, nullptr, kept->gate, F, threads);
    linear(up, h, u_both + gate.R, both, T, nullptr, kept->up, F, threads);
    luthier_swiglu_bf16(kept->gate, kept->up, s, T, F, F, threads);
    into_rank(down, s, T, u_down, down.R, threads);
    linear(down, s, u_down, down.R, T, kept->x1, out, E, threads);
}

extern "C" void luthier_adapted_out_backward(const Adapted *layers, const bf16 *norm, const bf16 *attended, int64_t T, const Kept *kept,
                                             const bf16 *g, bf16 *dx, bf16 *d_attended, int threads) {
    const Adapted &o = layers[0], &gate = layers[1], &up = layers[2], &down = layers[3];
    const int64_t E = o.O, F = gate.O, both = gate.R + up.R;
    bf16 *s = room<Here>(2, T * F), *c = room<Here>(3, T * (o.R + both + down.R));
    bf16 *d_gate = room<Here>(4, 2 * T * F), *d_up = d_gate + T * F;
    bf16 *dh = room<Here>(1, T * E);
    const bf16 *u_both = kept->u + T * o.R, *u_down = u_both + T * both;
    // 1. the last layer, and silu(gate) * up, which it reads
    backward(&down, 1, &g, &E, &u_down, &down.R, T, c, s, threads);
    luthier_swiglu_backward_bf16(s, kept->gate, kept->up, d_gate, d_up, T, F, threads);
    grads_a(&down, 1, c, s, nullptr, nullptr, T, threads);
    // 2. gate and up, and the norm they read
    const bf16 *of[2] = {d_gate, d_up}, *us[2] = {u_both, u_both + gate.R};
    const int64_t strides[2] = {F, F}, u_strides[2] = {both, both};
    backward(&gate, 2, of, strides, us, u_strides, T, c, dh, threads);
    grads_a(&gate, 2, c, kept->x1, kept->r, norm, T, threads);
    luthier_rms_norm_backward_bf16(dh, kept->x1, norm, kept->r, g, dx, T, E, threads);
    // 3. the layer behind attention
    const bf16 *d_x1 = dx, *u_o = kept->u;
    backward(&o, 1, &d_x1, &E, &u_o, &o.R, T, c, d_attended, threads);
    grads_a(&o, 1, c, attended, nullptr, nullptr, T, threads);
}

// q, k, v, o, gate, up, down: what the layer answers, [T, E]
extern "C" void luthier_adapted_layer(const Adapted *layers, const Around *around, const bf16 *x, int64_t T, bf16 *kept, float *kept_r, bf16 *out,
                                      int threads) {
    const Around &with = *around;
    const AllKept all(kept, kept_r, layers, with, T);
    luthier_adapted_in(layers, with.norm1, with.eps1, x, T, with.cos, with.sin, with.D, all.heads, all.r_in, all.u_in, threads);
    luthier_tree_attention(all.heads, with.segments, with.num_segments, with.P, with.H, with.K, with.D, with.scaling, all.attended, threads);
    luthier_adapted_out(layers + 3, with.norm2, with.eps2, x, all.attended, T, &all.out, out, threads);
}

extern "C" void luthier_adapted_layer_backward(const Adapted *layers, const Around *around, const bf16 *x, int64_t T, bf16 *kept, float *kept_r,
                                               const bf16 *g, bf16 *dx, int threads) {
    const Around &with = *around;
    const AllKept all(kept, kept_r, layers, with, T);
    const int64_t E = layers[0].K;
    bf16 *d_x1 = room<Here>(5, T * E), *d_attended = room<Here>(6, T * with.H * with.D);
    bf16 *d_heads = room<Here>(7, T * (with.H + 2 * with.K) * with.D);
    luthier_adapted_out_backward(layers + 3, with.norm2, all.attended, T, &all.out, g, d_x1, d_attended, threads);
    luthier_tree_attention_backward(all.heads, with.segments, with.num_segments, with.P, with.H, with.K, with.D, with.scaling, d_attended, d_heads,
                                    threads);
    luthier_adapted_in_backward(layers, with.norm1, x, T, with.cos, with.sin, with.D, all.r_in, all.u_in, d_heads, d_x1, dx, threads);
}
#else
extern "C" void luthier_adapted_in(const void *, const void *, float, const void *, int64_t, const void *, const void *, int64_t, void *, void *,
                                   void *, int) {}
extern "C" void luthier_adapted_in_backward(const void *, const void *, const void *, int64_t, const void *, const void *, int64_t, const void *,
                                            const void *, const void *, const void *, void *, int) {}
extern "C" void luthier_adapted_out(const void *, const void *, float, const void *, const void *, int64_t, const void *, void *, int) {}
extern "C" void luthier_adapted_out_backward(const void *, const void *, const void *, int64_t, const void *, const void *, void *, void *,
                                             int) {}
extern "C" void luthier_adapted_layer(const void *, const void *, const void *, int64_t, void *, void *, void *, int) {}
extern "C" void luthier_adapted_layer_backward(const void *, const void *, const void *, int64_t, void *, void *, const void *, void *, int) {}
#endif
