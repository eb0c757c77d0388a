// A decoder layer with adapters, forward and backward, in two calls instead of seventy, or in four where attention is computed between them: at a
// few hundred tokens an update spends a third of its time between the calls. The operations are those of fused.cpp, narrow.h, wide.h and
// tiled_attention.cpp, those that do not need one another together, else in the order of decoder_layer.py. Results are bit-equal to it, but for
// the gradient of a whole layer's input, which is rounded once instead of twice. That file has the formulas; E hidden, F feed-forward width,
// S = H + 2K heads of size D, R rank, T tokens.

#include "narrow.h"
#include "wide.h"

#ifdef LUTHIER_HAS_TILES

using luthier::bf16;
using luthier::Narrow;
using luthier::Outer;
using luthier::Part;
using luthier::room;
using luthier::together;
using luthier::Wide;

extern "C" {
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

// u = scale * A h of layers with one input, side by side
void into_ranks(const Adapted *layers, int count, const bf16 *h, int64_t T, bf16 *u, int threads) {
    const int64_t R = ranks(layers, count);
    std::deque<Narrow> jobs;
    for (int n = 0; n < count; u += layers[n++].R)
        jobs.emplace_back(
            luthier::NarrowProduct{h, layers[n].K, T, layers[n].K, layers[n].a, 1, layers[n].K, layers[n].R, static_cast<float>(layers[n].scale), u, R},
            n);
    together(threads, jobs);
}

// B u + W h + b + residual of layers with one input
void linears(const Adapted *layers, int count, const bf16 *h, const bf16 *u, int64_t T, const bf16 *residual, bf16 *const *outs, int64_t out_stride,
             int threads) {
    const int64_t R = ranks(layers, count);
    std::deque<Wide> jobs;
    for (int n = 0; n < count; u += layers[n++].R) {
        const Adapted &layer = layers[n];
        const Part parts[2] = {{u, R, layer.R, layer.b, 1, layer.R}, {h, layer.K, layer.K, layer.w, 1, layer.K}};
        jobs.emplace_back(luthier::Product{parts, 2, T, layer.O, layer.bias, residual, layer.O, outs[n], out_stride}, threads);
    }
    together(threads, jobs);
}

// dA of layers with one input from their c: of h, or of x with h = r * x * w
luthier::OuterProduct grads_a(const Adapted *layers, int count, const bf16 *c, const bf16 *x, const float *r, const bf16 *norm, int64_t T) {
    const int64_t R = ranks(layers, count), K = layers[0].K;
    return {c, R, r, R, x, K, T, K, norm, layers[0].grad_a, K, 1};  // they lie one behind another
}

// What else is to be computed when a pass back through layers is, if anything: before c is known, or of it
struct Others {
    const luthier::OuterProduct *before, *with_c;
};

// Through layers that read the same input, g [T, O] of each: dh of that input, c = scale * g B of all [T, sum of R], dB of each
void backward(const Adapted *layers, int count, const bf16 *const *g, const int64_t *g_strides, const bf16 *u, int64_t T, bf16 *c, bf16 *dh,
              const Others &others, int threads) {
    const int64_t R = ranks(layers, count), K = layers[0].K;
    bf16 *a = room<Here>(0, R * K);
    std::vector<Part> parts{{c, R, R, a, K, 1}};
    std::deque<Narrow> into_c;
    std::deque<Outer> before, outers;
    for (int64_t n = 0, at = 0; n < count; at += layers[n++].R) {
        const Adapted &layer = layers[n];
        into_c.emplace_back(
            luthier::NarrowProduct{g[n], g_strides[n], T, layer.O, layer.b, layer.R, 1, layer.R, static_cast<float>(layer.scale), c + at, R}, n);
        std::memcpy(a + at * K, layer.a, 2 * layer.R * K);
        parts.push_back({g[n], g_strides[n], layer.O, layer.w, K, 1});
    }
    if (others.before != nullptr) before.emplace_back(*others.before, 0);
    together(threads, into_c, before);
    std::deque<Wide> product;
    product.emplace_back(luthier::Product{parts.data(), count + 1, T, K, nullptr, nullptr, 0, dh, K}, threads);
    for (int64_t n = 0, at = 0; n < count; at += layers[n++].R)
        outers.emplace_back(
            luthier::OuterProduct{u + at, R, nullptr, layers[n].R, g[n], g_strides[n], T, layers[n].O, nullptr, layers[n].grad_b, 1, layers[n].R}, n + 1);
    if (others.with_c != nullptr) outers.emplace_back(*others.with_c, count + 1);
    together(threads, product, outers);
}

// All that a whole layer keeps, in one piece of each kind: as `forward_layer` of adapted_layer.py counts them
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
    const int64_t E = layers[0].K, S = widths(layers, 3);
    bf16 *h = room<Here>(1, T * E), *raw = room<Here>(2, T * S);
    luthier_rms_norm_bf16(x, norm, h, r, T, E, eps, threads);
    bf16 *const outs[3] = {raw, raw + layers[0].O, raw + layers[0].O + layers[1].O};
    into_ranks(layers, 3, h, T, u, threads);
    linears(layers, 3, h, u, T, nullptr, outs, S, threads);
    luthier_rotate_bf16(raw, cos, sin, out, T, S / D, (layers[0].O + layers[1].O) / D, D, 1.0f, threads);
}

// `g` [T, S, D] is of what `adapted_in` answered; `residual` [T, E], if any, is what else x got
extern "C" void luthier_adapted_in_backward(const Adapted *layers, const bf16 *norm, const bf16 *x, int64_t T, const bf16 *cos, const bf16 *sin,
                                            int64_t D, const float *r, const bf16 *u, const bf16 *g, const bf16 *residual, bf16 *dx, int threads) {
    const int64_t E = layers[0].K, S = widths(layers, 3), R = ranks(layers, 3);
    bf16 *dh = room<Here>(1, T * E), *turned = room<Here>(2, T * S), *c = room<Here>(3, T * R);
    luthier_rotate_bf16(g, cos, sin, turned, T, S / D, (layers[0].O + layers[1].O) / D, D, -1.0f, threads);
    const bf16 *of[3] = {turned, turned + layers[0].O, turned + layers[0].O + layers[1].O};
    const int64_t strides[3] = {S, S, S};
    const luthier::OuterProduct of_a = grads_a(layers, 3, c, x, r, norm, T);
    backward(layers, 3, of, strides, u, T, c, dh, {nullptr, &of_a}, threads);
    if (dx != nullptr) luthier_rms_norm_backward_bf16(dh, x, norm, r, residual, dx, T, E, threads);
}

// o, gate, up, down: what the layer answers, [T, E]
extern "C" void luthier_adapted_out(const Adapted *layers, const bf16 *norm, float eps, const bf16 *x, const bf16 *attended, int64_t T,
                                    const Kept *kept, bf16 *out, int threads) {
    const Adapted &o = layers[0], &gate = layers[1], &down = layers[3];
    const int64_t E = o.O, F = gate.O, both = ranks(&gate, 2);
    bf16 *h = room<Here>(1, T * E), *s = room<Here>(2, T * F), *u_both = kept->u + T * o.R, *u_down = u_both + T * both;
    bf16 *const x1[1] = {kept->x1}, *const gate_up[2] = {kept->gate, kept->up}, *const outs[1] = {out};
    into_ranks(&o, 1, attended, T, kept->u, threads);
    linears(&o, 1, attended, kept->u, T, x, x1, E, threads);
    luthier_rms_norm_bf16(kept->x1, norm, h, kept->r, T, E, eps, threads);
    into_ranks(&gate, 2, h, T, u_both, threads);
    linears(&gate, 2, h, u_both, T, nullptr, gate_up, F, threads);
    luthier_swiglu_bf16(kept->gate, kept->up, s, T, F, F, threads);
    into_ranks(&down, 1, s, T, u_down, threads);
    linears(&down, 1, s, u_down, T, kept->x1, outs, E, threads);
}

extern "C" void luthier_adapted_out_backward(const Adapted *layers, const bf16 *norm, const bf16 *attended, int64_t T, const Kept *kept,
                                             const bf16 *g, bf16 *dx, bf16 *d_attended, int threads) {
    const Adapted &o = layers[0], &gate = layers[1], &down = layers[3];
    const int64_t E = o.O, F = gate.O, both = ranks(&gate, 2);
    bf16 *s = room<Here>(2, T * F), *c_o = room<Here>(3, T * (o.R + both + down.R)), *c_both = c_o + T * o.R, *c_down = c_both + T * both;
    bf16 *d_gate = room<Here>(4, 2 * T * F), *d_up = d_gate + T * F;
    bf16 *dh = room<Here>(1, T * E);
    const bf16 *u_both = kept->u + T * o.R, *u_down = u_both + T * both;
    // 1. the last layer, and silu(gate) * up, which it reads
    backward(&down, 1, &g, &E, u_down, T, c_down, s, {}, threads);
    luthier_swiglu_backward_bf16(s, kept->gate, kept->up, d_gate, d_up, T, F, threads);
    // 2. gate and up, and the norm they read
    const bf16 *of[2] = {d_gate, d_up};
    const int64_t strides[2] = {F, F};
    const luthier::OuterProduct down_a = grads_a(&down, 1, c_down, s, nullptr, nullptr, T), both_a = grads_a(&gate, 2, c_both, kept->x1, kept->r, norm, T);
    backward(&gate, 2, of, strides, u_both, T, c_both, dh, {&down_a, &both_a}, threads);
    luthier_rms_norm_backward_bf16(dh, kept->x1, norm, kept->r, g, dx, T, E, threads);
    // 3. the layer behind attention
    const bf16 *d_x1 = dx;
    const luthier::OuterProduct o_a = grads_a(&o, 1, c_o, attended, nullptr, nullptr, T);
    backward(&o, 1, &d_x1, &E, kept->u, T, c_o, d_attended, {nullptr, &o_a}, threads);
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

LUTHIER_CALL(luthier_adapted_in)
LUTHIER_CALL(luthier_adapted_in_backward)
LUTHIER_CALL(luthier_adapted_out)
LUTHIER_CALL(luthier_adapted_out_backward)
LUTHIER_CALL(luthier_adapted_layer)
LUTHIER_CALL(luthier_adapted_layer_backward)
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
