// The small operations between the large products of a decoder layer, each in one pass over memory.
//
// Taken one by one, they read and write every number several times and cost more calls than arithmetic: half of an update of short rows.
// Compiled once by the user's own compiler (compiled.py) and called by fused.py, which holds the same operations in plain torch: the twin
// that runs where there is no compiler. Every function works row by row, so a result depends on neither the number of threads nor the
// other rows. Sums and everything between load and store are fp32. Pointers and sizes are checked by the caller.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "memory.h"
#include "sixteen.h"

namespace {

using luthier::all;
using luthier::bf16;
using luthier::exp;
using luthier::inverse_of;
using luthier::larger;
using luthier::largest;
using luthier::load;
using luthier::one;
using luthier::only;
using luthier::put;
using luthier::root;
using luthier::store;
using luthier::total;
using luthier::V;
using luthier::W;

// `body(i, n)` for the numbers i .. i + n, sixteen at a time and the rest at the end.
template <typename Body> inline void sweep(int64_t width, Body body) {
    int64_t i = 0;
    for (; i + W <= width; i += W) body(i, W);
    if (i < width) body(i, width - i);
}
inline V sigmoid(V x) {
    return inverse_of(1.0f + exp(-larger(all(-80.0f), x)));
}

// A row of fp32 that belongs to this thread, a whole number of sixteens; null where memory ran out.
inline float *row_of(int64_t width, luthier::Shortage &shortage) {
    static thread_local std::vector<float> row;
    shortage.in_thread([&] { luthier::make_room(row, width + W); });
    return row.empty() ? nullptr : row.data();
}

constexpr int64_t SMALL = 1 << 14;  // below so many numbers, waking a second thread costs more than it saves
inline int threads_for(int64_t numbers, int threads) { return numbers < SMALL ? 1 : threads; }

// ---- RMSNorm: y = x * r * w, r = 1 / sqrt(mean(x^2) + eps) ---------------------------------------------------------------------------
template <typename T>
void rms_norm(const T *x, const T *w, T *y, float *r, int64_t rows, int64_t width, float eps, int threads) {
#pragma omp parallel for num_threads(threads_for(rows * width, threads))
    for (int64_t t = 0; t < rows; ++t) {
        const T *xt = x + t * width;
        T *yt = y + t * width;
        V sum = {};
        sweep(width, [&](int64_t i, int64_t n) {
            const V v = load(xt + i, n);
            sum += v * v;
        });
        const float rt = 1.0f / std::sqrt(total(sum) / static_cast<float>(width) + eps);
        r[t] = rt;
        sweep(width, [&](int64_t i, int64_t n) { store(yt + i, load(xt + i, n) * rt * load(w + i, n), n); });
    }
}

// With u = g * w:  dx = r * (u - x * r^2 * mean(u * x)) + residual
template <typename T>
void rms_norm_backward(const T *g, const T *x, const T *w, const float *r, const T *residual, T *dx, int64_t rows, int64_t width,
                       int threads) {
#pragma omp parallel for num_threads(threads_for(rows * width, threads))
    for (int64_t t = 0; t < rows; ++t) {
        const T *gt = g + t * width, *xt = x + t * width;
        T *dt = dx + t * width;
        V sum = {};
        sweep(width, [&](int64_t i, int64_t n) { sum += load(gt + i, n) * load(w + i, n) * load(xt + i, n); });
        const float rt = r[t], along = total(sum) * rt * rt / static_cast<float>(width);
        sweep(width, [&](int64_t i, int64_t n) {
            V d = rt * (load(gt + i, n) * load(w + i, n) - load(xt + i, n) * along);
            if (residual != nullptr) d += load(residual + t * width + i, n);
            store(dt + i, d, n);
        });
    }
}

// ---- Rotary embedding of the first `turned` of `heads` heads; the others are copied. Both halves of cos and sin are alike. ------------
template <typename T>
void rotate(const T *x, const T *cos, const T *sin, T *out, int64_t rows, int64_t heads, int64_t turned, int64_t size, float sign,
            int threads) {
    const int64_t half = size / 2;
#pragma omp parallel for num_threads(threads_for(rows * heads * size, threads))
    for (int64_t t = 0; t < rows; ++t) {
        const T *c = cos + t * size, *s = sin + t * size;
        for (int64_t h = 0; h < turned; ++h) {
            const T *a = x + (t * heads + h) * size;
            T *o = out + (t * heads + h) * size;
            sweep(half, [&](int64_t i, int64_t n) {
                const V first = load(a + i, n), second = load(a + i + half, n), ci = load(c + i, n), si = sign * load(s + i, n);
                store(o + i, first * ci - second * si, n);
                store(o + i + half, second * ci + first * si, n);
            });
        }
        const int64_t rest = (t * heads + turned) * size;
        if (out != x) std::memcpy(out + rest, x + rest, (heads - turned) * size * sizeof(T));
    }
}

// ---- silu(gate) * up; gate and up may be the halves of one matrix: `stride` numbers from row to row -----------------------------------
template <typename T>
void swiglu(const T *gate, const T *up, T *out, int64_t rows, int64_t width, int64_t stride, int threads) {
#pragma omp parallel for num_threads(threads_for(rows * width, threads))
    for (int64_t t = 0; t < rows; ++t) {
        const T *gt = gate + t * stride, *ut = up + t * stride;
        T *ot = out + t * width;
        sweep(width, [&](int64_t i, int64_t n) {
            const V x = load(gt + i, n);
            store(ot + i, x * sigmoid(x) * load(ut + i, n), n);
        });
    }
}

// dup = ds * silu(gate),  dgate = ds * up * (sig + silu * (1 - sig)),  and silu(gate) * up in place of ds
template <typename T>
void swiglu_backward(T *ds, const T *gate, const T *up, T *dgate, T *dup, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads_for(rows * width, threads))
    for (int64_t t = 0; t < rows; ++t) {
        const int64_t at = t * width;
        sweep(width, [&](int64_t i, int64_t n) {
            const V x = load(gate + at + i, n), u = load(up + at + i, n), d = load(ds + at + i, n);
            const V sig = sigmoid(x), silu = x * sig;
            store(ds + at + i, silu * u, n);
            store(dup + at + i, d * silu, n);
            store(dgate + at + i, d * u * (sig + silu * (1.0f - sig)), n);
        });
    }
}

// ---- softmax(scale * scores + bias) in place, row by row ------------------------------------------------------------------------------
// Row t sees what row t % bias_rows of `bias` leaves; with no bias the last `own` keys are the queries' own, and query t % own sees none
// behind itself.
template <typename T>
void softmax(T *scores, const T *bias, int64_t rows, int64_t width, int64_t bias_rows, int64_t own, float scale, int threads) {
    luthier::Shortage shortage;
#pragma omp parallel for num_threads(threads_for(rows * width, threads))
    for (int64_t t = 0; t < rows; ++t) {
        T *st = scores + t * width;
        const T *bt = bias == nullptr ? nullptr : bias + (t % bias_rows) * width;
        const int64_t seen = bias == nullptr && own > 0 ? width - own + t % own + 1 : width;
        auto score = [&](int64_t i, int64_t n) {
            const V s = load(st + i, n) * scale;
            return bt == nullptr ? s : s + load(bt + i, n);
        };
        V tops = all(-INFINITY), sums = {};
        sweep(seen, [&](int64_t i, int64_t n) {
            const V s = n == W ? score(i, n) : only(score(i, n), n, -INFINITY);
            tops = larger(s, tops);
        });
        const float top = largest(tops);
        float *exps = row_of(width, shortage);
        if (exps == nullptr) continue;
        sweep(seen, [&](int64_t i, int64_t n) {
            V e = exp(score(i, n) - top);
            if (n < W) e = only(e, n, 0.0f);
            store(exps + i, e, W);
            sums += e;
        });
        const float inverse = 1.0f / total(sums);
        sweep(seen, [&](int64_t i, int64_t n) { store(st + i, load(exps + i, W) * inverse, n); });
        std::memset(st + seen, 0, (width - seen) * sizeof(T));
    }
    shortage.rethrow();
}

// dS = scale * W * (dW - sum(dW * W)), in place of dW
template <typename T> void softmax_backward(T *dw, const T *w, int64_t rows, int64_t width, float scale, int threads) {
#pragma omp parallel for num_threads(threads_for(rows * width, threads))
    for (int64_t t = 0; t < rows; ++t) {
        T *dt = dw + t * width;
        const T *wt = w + t * width;
        V sum = {};
        sweep(width, [&](int64_t i, int64_t n) { sum += load(dt + i, n) * load(wt + i, n); });
        const float along = total(sum);
        sweep(width, [&](int64_t i, int64_t n) { store(dt + i, scale * load(wt + i, n) * (load(dt + i, n) - along), n); });
    }
}

// ---- Cross-entropy: loss of each row, and softmax - onehot in place of the logits -----------------------------------------------------
template <typename T>
void cross_entropy(T *logits, const int64_t *target, float *loss, int64_t rows, int64_t vocab, int with_gradient, int threads) {
    luthier::Shortage shortage;
#pragma omp parallel for num_threads(threads_for(rows * vocab, threads))
    for (int64_t t = 0; t < rows; ++t) {
        T *lt = logits + t * vocab;
        V tops = all(-INFINITY), sums = {};
        sweep(vocab, [&](int64_t i, int64_t n) {
            const V l = n == W ? load(lt + i, n) : only(load(lt + i, n), n, -INFINITY);
            tops = larger(l, tops);
        });
        const float top = largest(tops);
        float *exps = row_of(vocab, shortage);
        if (exps == nullptr) continue;
        sweep(vocab, [&](int64_t i, int64_t n) {
            V e = exp(load(lt + i, n) - top);
            if (n < W) e = only(e, n, 0.0f);
            store(exps + i, e, W);
            sums += e;
        });
        const float sum = total(sums), wanted = one(lt + target[t]) - top;
        loss[t] = std::log(sum) - wanted;
        if (!with_gradient) continue;
        const float inverse = 1.0f / sum;
        sweep(vocab, [&](int64_t i, int64_t n) { store(lt + i, load(exps + i, W) * inverse, n); });
        put(lt + target[t], std::exp(wanted) * inverse - 1.0f);
    }
    shortage.rethrow();
}

// ---- Many small tensors and one flat fp32 vector --------------------------------------------------------------------------------------
template <typename T> void add_to_flat(const T *const *parts, const int64_t *sizes, int64_t count, float *flat, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int64_t at = 0;
        for (int64_t k = 0; k < count; ++k) {
            const T *from = parts[k];
            float *to = flat + at;
            if (from != nullptr) {
#pragma omp for nowait
                for (int64_t i = 0; i < sizes[k] / W; ++i) store(to + i * W, load(to + i * W, W) + load(from + i * W, W), W);
#pragma omp single nowait
                for (int64_t i = sizes[k] / W * W; i < sizes[k]; ++i) to[i] += one(from + i);
            }
            at += sizes[k];
        }
    }
}

template <typename T> void copy_from_flat(T *const *parts, const int64_t *sizes, int64_t count, const float *flat, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int64_t at = 0;
        for (int64_t k = 0; k < count; ++k) {
            T *to = parts[k];
            const float *from = flat + at;
#pragma omp for nowait
            for (int64_t i = 0; i < sizes[k] / W; ++i) store(to + i * W, load(from + i * W, W), W);
#pragma omp single nowait
            for (int64_t i = sizes[k] / W * W; i < sizes[k]; ++i) put(to + i, from[i]);
            at += sizes[k];
        }
    }
}

// ---- AdamW on a flat vector, its gradient and moments; the weights as they compute are written, the gradient is cleared ----------------
struct Adam {
    float scale, mean_share, square_kept, square_share, correction, eps, step, kept;
};
template <typename T> inline void adamw_some(T *to, float *weight, float *grad, float *mean, float *square, const Adam &a, int64_t n) {
    const V g = load(grad, n) * a.scale, m0 = load(mean, n);
    const V m = m0 + (g - m0) * a.mean_share, s = load(square, n) * a.square_kept + g * g * a.square_share;
    const V w = load(weight, n) * a.kept - m * a.step / (root(s) * a.correction + a.eps);
    store(mean, m, n), store(square, s, n), store(weight, w, n), store(grad, all(0.0f), n), store(to, w, n);
}
template <typename T>
void adamw(T *const *parts, const int64_t *sizes, int64_t count, float *weight, float *grad, float *mean, float *square, const Adam *how,
           int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Adam a = *how;
        int64_t first = 0;
        for (int64_t k = 0; k < count; ++k) {
            T *to = parts[k];
#pragma omp for nowait
            for (int64_t i = 0; i < (sizes[k] + W - 1) / W; ++i) {
                const int64_t from = i * W, at = first + from, n = sizes[k] - from < W ? sizes[k] - from : W;
                adamw_some(to + from, weight + at, grad + at, mean + at, square + at, a, n);
            }
            first += sizes[k];
        }
    }
}

// ---- Rows of `bytes` bytes by index ---------------------------------------------------------------------------------------------------
void gather(const char *from, const int64_t *index, char *to, int64_t rows, int64_t bytes, int threads) {
#pragma omp parallel for num_threads(threads_for(rows * bytes / 2, threads))
    for (int64_t k = 0; k < rows; ++k) std::memcpy(to + k * bytes, from + index[k] * bytes, bytes);
}

}  // namespace

#define BOTH(NAME, PARAMETERS, CALL)                                                                                                     \
    extern "C" void NAME##_bf16 PARAMETERS(bf16) { CALL; }                                                                              \
    extern "C" void NAME##_f32 PARAMETERS(float) { CALL; }                                                                              \
    LUTHIER_CALL(NAME##_bf16)                                                                                                           \
    LUTHIER_CALL(NAME##_f32)

#define P_RMS_NORM(T) (const T *x, const T *w, T *y, float *r, int64_t rows, int64_t width, float eps, int threads)
BOTH(luthier_rms_norm, P_RMS_NORM, rms_norm(x, w, y, r, rows, width, eps, threads))

#define P_RMS_NORM_BACKWARD(T)                                                                                                           \
    (const T *g, const T *x, const T *w, const float *r, const T *residual, T *dx, int64_t rows, int64_t width, int threads)
BOTH(luthier_rms_norm_backward, P_RMS_NORM_BACKWARD, rms_norm_backward(g, x, w, r, residual, dx, rows, width, threads))

#define P_ROTATE(T)                                                                                                                      \
    (const T *x, const T *cos, const T *sin, T *out, int64_t rows, int64_t heads, int64_t turned, int64_t size, float sign, int threads)
BOTH(luthier_rotate, P_ROTATE, rotate(x, cos, sin, out, rows, heads, turned, size, sign, threads))

#define P_SWIGLU(T) (const T *gate, const T *up, T *out, int64_t rows, int64_t width, int64_t stride, int threads)
BOTH(luthier_swiglu, P_SWIGLU, swiglu(gate, up, out, rows, width, stride, threads))

#define P_SWIGLU_BACKWARD(T) (T * ds, const T *gate, const T *up, T *dgate, T *dup, int64_t rows, int64_t width, int threads)
BOTH(luthier_swiglu_backward, P_SWIGLU_BACKWARD, swiglu_backward(ds, gate, up, dgate, dup, rows, width, threads))

#define P_SOFTMAX(T) (T * scores, const T *bias, int64_t rows, int64_t width, int64_t bias_rows, int64_t own, float scale, int threads)
BOTH(luthier_softmax, P_SOFTMAX, softmax(scores, bias, rows, width, bias_rows, own, scale, threads))

#define P_SOFTMAX_BACKWARD(T) (T * dw, const T *w, int64_t rows, int64_t width, float scale, int threads)
BOTH(luthier_softmax_backward, P_SOFTMAX_BACKWARD, softmax_backward(dw, w, rows, width, scale, threads))

#define P_CROSS_ENTROPY(T) (T * logits, const int64_t *target, float *loss, int64_t rows, int64_t vocab, int with_gradient, int threads)
BOTH(luthier_cross_entropy, P_CROSS_ENTROPY, cross_entropy(logits, target, loss, rows, vocab, with_gradient, threads))

#define P_ADD_TO_FLAT(T) (const T *const *parts, const int64_t *sizes, int64_t count, float *flat, int threads)
BOTH(luthier_add_to_flat, P_ADD_TO_FLAT, add_to_flat(parts, sizes, count, flat, threads))

#define P_COPY_FROM_FLAT(T) (T * const *parts, const int64_t *sizes, int64_t count, const float *flat, int threads)
BOTH(luthier_copy_from_flat, P_COPY_FROM_FLAT, copy_from_flat(parts, sizes, count, flat, threads))

#define P_ADAMW(T)                                                                                                                       \
    (T * const *parts, const int64_t *sizes, int64_t count, float *weight, float *grad, float *mean, float *square, const float *how,      \
     int threads)
BOTH(luthier_adamw, P_ADAMW, adamw(parts, sizes, count, weight, grad, mean, square, reinterpret_cast<const Adam *>(how), threads))

extern "C" void luthier_gather(const char *from, const int64_t *index, char *to, int64_t rows, int64_t bytes, int threads) {
    gather(from, index, to, rows, bytes, threads);
}
LUTHIER_CALL(luthier_gather)
