// Attention over a token tree on tiles, forward and backward. As products of a general library it is a hundred calls a layer with
// gathers and copies between them, and takes as long as half of the layer's large products; its arithmetic is a twentieth of theirs.
// Called by tiled_attention.py. Sums and softmax are fp32; results do not depend on the number of threads. D is whole thirty-twos.
//
// A segment is the prefix or a leaf. One task: up to CHUNK queries of a segment, by the G query heads that read one key head.
//   1. The C keys and values that the task sees, prefix and segment up to its last query, are laid out as the tiles read them.
//   2. For 32 queries at a time, scores with all keys up to the last of them; later keys of each query are masked by its softmax.
//   3. Backward makes scores and softmax again. With W = softmax(scale * q k^T), g = dL/dout:
//        dv = W^T g,   dS = scale * W * (g v^T - sum(W * g v^T)),   dq = dS k,   dk = dS^T q.
//      dk and dv are kept turned, [D, C], so that W and dS are right factors as they are made: only pairs of rows are to be joined.
//   4. Keys seen by several tasks get the sum of what each found, in the order of the tasks.

#include "tiles.h"

#ifdef LUTHIER_HAS_TILES
#include <algorithm>
#include <cmath>

namespace {

using luthier::all;
using luthier::bf16;
using luthier::larger;
using luthier::largest;
using luthier::load;
using luthier::only;
using luthier::pair_rows;
using luthier::room;
using luthier::Run;
using luthier::Session;
using luthier::store;
using luthier::total_in_halves;
using luthier::turn_pairs;
using luthier::V;
using luthier::written;

struct Here;

constexpr int64_t TILE = 512, SUMS = 256;  // numbers of a tile of bf16, of fp32
constexpr int64_t BLOCK = 32, CHUNK = 256;
constexpr int64_t ALL = 32;

struct Tree {
    const bf16 *x;            // [T, S = H + 2K, D]: queries, keys, values
    const int64_t *segments;  // [num_segments, 2]: where each begins and ends; the first is the prefix, if P > 0
    int64_t num_segments, P, H, K, D;
    float scale;
    const bf16 *prefix = nullptr;  // [2, P, K, D], where the keys and values of the first P tokens do not lie in x, which then begins behind them
    int64_t G() const { return H / K; }
    const bf16 *head(int64_t token, int64_t head) const { return x + (token * (H + 2 * K) + head) * D; }
    // The key (part 0) or value (part 1) of a token
    const bf16 *seen(int64_t token, int64_t part, int64_t kv) const {
        if (prefix == nullptr) return head(token, H + part * K + kv);
        return token < P ? prefix + ((part * P + token) * K + kv) * D : head(token - P, H + part * K + kv);
    }
    // Of a segment behind the prefix: of tokens of x, or of all
    int64_t before() const { return prefix == nullptr ? 0 : P; }
};

struct Task {
    int64_t segment, first, start, end, prefix, kv;
    int64_t at;  // where its sums stand: dk [C, D], then dv
    int64_t keys() const { return prefix + end - first; }
    int64_t token(int64_t key, int64_t before) const { return key < prefix ? key : before + first + key - prefix; }
};

inline int64_t whole(int64_t count) { return (count + BLOCK - 1) / BLOCK * BLOCK; }

std::vector<Task> tasks_of(const Tree &tree) {
    std::vector<Task> tasks;
    int64_t at = 0;
    for (int64_t n = 0; n < tree.num_segments; ++n) {
        const int64_t first = tree.segments[2 * n], last = tree.segments[2 * n + 1];
        for (int64_t start = first; start < last; start += CHUNK)
            for (int64_t kv = 0; kv < tree.K; ++kv) {
                tasks.push_back({n, first, start, std::min(start + CHUNK, last), first + tree.before() >= tree.P ? tree.P : 0, kv, at});
                at += 2 * tasks.back().keys() * tree.D;
            }
    }
    return tasks;
}

// ---- products of 32 rows, [2][2] tiles of sums at a time ----------------------------------------------------------------------------------
inline void store_sums(Session &tiles, float *sums, int64_t stride) {
    tiles.store<0>(sums, 4 * stride);
    tiles.store<1>(sums + 16, 4 * stride);
    tiles.store<2>(sums + 16 * stride, 4 * stride);
    tiles.store<3>(sums + 16 * stride + 16, 4 * stride);
}

// Rows [C, D], C whole thirty-twos, as right factors: turned, for sums over d
void lay_turned(const bf16 *rows, int64_t C, int64_t D, bf16 *to) {
    for (int64_t c = 0; c < C; c += 16)
        for (int64_t d = 0; d < D; d += 32, to += TILE) turn_pairs(rows + c * D + d, D, 16, ALL, to);
}

// and as they are, for sums over c
void lay_paired(const bf16 *rows, int64_t C, int64_t D, bf16 *to) {
    for (int64_t c = 0; c < C; c += 32)
        for (int64_t d = 0; d < D; d += 32, to += 2 * TILE) pair_rows(rows + c * D + d, D, 32, ALL, to, to + TILE);
}

// 32 rows of D turned: a left factor for sums over the rows, [D, 32]
void turn_rows(const bf16 *rows, int64_t D, bf16 *to) {
    alignas(64) bf16 low[TILE], high[TILE];
    for (int64_t d = 0; d < D; d += 32, to += 2 * TILE) {
        pair_rows(rows + d, D, 32, ALL, low, high);
        turn_pairs(low, 32, 16, ALL, to);
        turn_pairs(high, 32, 16, ALL, to + TILE);
    }
}

// sums [count of 32, C] = left [32, D] times turned rows
void over_depth(Session &tiles, const bf16 *left, int64_t count, const bf16 *turned, int64_t C, int64_t D, float *sums, int64_t stride) {
    const int64_t steps = D / 32;
    for (int64_t c = 0; c < C; c += 32) {
        const bf16 *right = turned + c / 16 * steps * TILE;
        const Run run{{left, 16 * D, 32, 2 * D, count}, {right, right + steps * TILE, TILE}, steps};
        tiles.square<false>(&run, 1, true, c > 0);
        store_sums(tiles, sums + c, stride);
    }
}

// sums [count of 32, D] = left [32, C] times paired rows
void over_keys(Session &tiles, const bf16 *left, int64_t count, int64_t stride, const bf16 *paired, int64_t C, int64_t D, float *sums) {
    const int64_t blocks = D / 32;
    for (int64_t n = 0; n < blocks; ++n) {
        const bf16 *right = paired + n * 2 * TILE;
        const Run run{{left, 16 * stride, 32, 2 * stride, count}, {right, right + TILE, blocks * 2 * TILE}, C / 32};
        tiles.square<false>(&run, 1, true, n > 0);
        store_sums(tiles, sums + 32 * n, D);
    }
}

// ---- what a task sees ---------------------------------------------------------------------------------------------------------------------
// The keys, or values, of a task, zeros up to whole thirty-twos
const bf16 *collect(const Tree &tree, const Task &task, int64_t part, bf16 *to) {
    const int64_t C = task.keys(), D = tree.D, before = tree.before();
    for (int64_t c = 0; c < C; ++c) std::memcpy(to + c * D, tree.seen(task.token(c, before), part, task.kv), 2 * D);
    std::memset(to + C * D, 0, 2 * (whole(C) - C) * D);
    return to;
}

// 32 rows of D from `from` on, `apart` numbers apart, zeros past `count`
const bf16 *block_of(const bf16 *from, int64_t apart, int64_t count, int64_t D, bf16 *to) {
    for (int64_t row = 0; row < BLOCK; ++row)
        if (row < count) std::memcpy(to + row * D, from + row * apart, 2 * D);
        else std::memset(to + row * D, 0, 2 * D);
    return to;
}

// The first `seen` scores to exp(scale * (score - the largest)), in place, or rounded into `weights`; their sum. A NaN makes the sum one.
float exponentials(float *row, int64_t seen, float scale, bf16 *weights = nullptr) {
    V most = all(-INFINITY), sum = {};
    for (int64_t c = 0; c < seen; c += 16) most = larger(most, only(load(row + c), seen - c, -INFINITY));
    const float top = largest(most);
    for (int64_t c = 0; c < seen; c += 16) {
        const V e = only(luthier::exp((load(row + c) - top) * scale), seen - c, 0.0f);
        if (weights == nullptr) store(row + c, e);
        else store(weights + c, e);
        sum += e;
    }
    return total_in_halves(sum);
}

struct Numbers {  // of a task: the keys' and values' right factors, and what blocks of queries use
    int64_t stride;  // between rows of scores: whole thirty-twos and a line, so that rows do not share places of the cache
    bf16 *rows, *keys_turned, *values_paired, *queries, *weights;
    float *scores, *sums;

    Numbers(const Tree &tree, const Task &task) : stride(whole(task.keys()) + 32) {
        const int64_t C = whole(task.keys()), D = tree.D;
        rows = room<Here>(0, C * D), keys_turned = room<Here>(1, C * D), values_paired = room<Here>(2, C * D);
        queries = room<Here>(3, BLOCK * D), weights = room<Here>(4, BLOCK * stride);
        scores = room<Here, float>(0, BLOCK * stride), sums = room<Here, float>(1, BLOCK * D);
    }
};

// ---- forward ------------------------------------------------------------------------------------------------------------------------------
void answer(Session &tiles, const Tree &tree, const Task &task, bf16 *out) {
    const Numbers with(tree, task);
    const int64_t C = whole(task.keys()), D = tree.D, S = tree.H + 2 * tree.K;
    lay_turned(collect(tree, task, 0, with.rows), C, D, with.keys_turned);
    lay_paired(collect(tree, task, 1, with.rows), C, D, with.values_paired);
    for (int64_t t = task.start; t < task.end; t += BLOCK) {
        const int64_t count = std::min(BLOCK, task.end - t), before = task.prefix + t - task.first, seen = whole(before + count);
        for (int64_t head = task.kv * tree.G(); head < (task.kv + 1) * tree.G(); ++head) {
            over_depth(tiles, block_of(tree.head(t, head), S * D, count, D, with.queries), count, with.keys_turned, seen, D, with.scores, with.stride);
            float totals[BLOCK];
            for (int64_t row = 0; row < count; ++row) {
                bf16 *weights = with.weights + row * with.stride;
                const int64_t own = before + row + 1;
                totals[row] = exponentials(with.scores + row * with.stride, own, tree.scale, weights);
                for (int64_t c = (own + 15) / 16 * 16; c < seen; c += 16) store(weights + c, V{});
            }
            over_keys(tiles, with.weights, count, with.stride, with.values_paired, seen, D, with.sums);
            for (int64_t row = 0; row < count; ++row)
                for (int64_t d = 0; d < D; d += 16)
                    store(out + ((t + row) * tree.H + head) * D + d, load(with.sums + row * D + d) / totals[row]);
        }
    }
}

// ---- backward -----------------------------------------------------------------------------------------------------------------------------
struct More {  // what backward needs besides
    bf16 *values_turned, *keys_paired, *grads, *dscores, *turned, *paired;
    float *dweights, *turned_sums;

    More(const Tree &tree, const Task &task, const Numbers &with) {
        const int64_t C = whole(task.keys()), D = tree.D;
        values_turned = room<Here>(5, C * D), keys_paired = room<Here>(6, C * D);
        grads = room<Here>(7, BLOCK * D), dscores = room<Here>(8, BLOCK * with.stride);
        turned = room<Here>(9, 2 * tree.G() * BLOCK * D), paired = room<Here>(10, 2 * tree.G() * BLOCK * C);
        dweights = room<Here, float>(2, BLOCK * with.stride), turned_sums = room<Here, float>(3, 2 * C * D);
        std::memset(turned_sums, 0, 8 * C * D);
    }
};

// Rows of scores and of dL/dW to W and dS, in bf16; zeros where a query sees nothing, and in the rows past `count`
void to_dscores(const Tree &tree, const Numbers &with, const More &more, int64_t count, int64_t before, int64_t seen) {
    for (int64_t row = 0; row < BLOCK; ++row) {
        float *scores = with.scores + row * with.stride, *dweights = more.dweights + row * with.stride;
        bf16 *weights = with.weights + row * with.stride, *dscores = more.dscores + row * with.stride;
        const int64_t own = row < count ? before + row + 1 : 0;
        if (own > 0) {
            const float inverse = 1.0f / exponentials(scores, own, tree.scale);
            V sum = {};
            for (int64_t c = 0; c < own; c += 16) {
                const V w = load(scores + c) * inverse;
                store(scores + c, w);
                store(weights + c, w);
                sum += w * only(load(dweights + c), own - c, 0.0f);
            }
            const float mean = total_in_halves(sum);
            for (int64_t c = 0; c < own; c += 16) {
                const V from_mean = only(load(dweights + c) - mean, own - c, 0.0f);
                store(dscores + c, tree.scale * load(scores + c) * from_mean);
            }
        }
        for (int64_t c = (own + 15) / 16 * 16; c < seen; c += 16) {
            store(weights + c, V{});
            store(dscores + c, V{});
        }
    }
}

// 32 rows of C as the right factor of products over the rows
void lay_block(const bf16 *rows, int64_t stride, int64_t C, bf16 *to) {
    for (int64_t c = 0; c < C; c += 32, to += 2 * TILE) pair_rows(rows + c, stride, 32, ALL, to, to + TILE);
}

// turned_sums [C / 32][D / 32][2][2][16 of d][16 of c] += the G heads' turned rows times their paired ones
void add_turned(Session &tiles, const bf16 *turned, const bf16 *paired, int64_t apart, int64_t G, int64_t C, int64_t D, float *sums) {
    for (int64_t c = 0; c < C; c += 32)
        for (int64_t d = 0; d < D; d += 32) {
            float *here = sums + (c * D + 32 * d);
            written();
            tiles.load<0>(here);
            tiles.load<1>(here + SUMS);
            tiles.load<2>(here + 2 * SUMS);
            tiles.load<3>(here + 3 * SUMS);
            const bf16 *right = paired + c / 32 * 2 * TILE;
            const Run run{{turned + d * BLOCK, 16 * BLOCK, BLOCK * D, 2 * BLOCK}, {right, right + TILE, apart}, G};
            tiles.square<false>(&run, 1, false);
            tiles.store<0>(here);
            tiles.store<1>(here + SUMS);
            tiles.store<2>(here + 2 * SUMS);
            tiles.store<3>(here + 3 * SUMS);
        }
}

// Sums turned back, to [C, D]
void turn_back(const float *sums, int64_t C, int64_t D, float *to) {
    alignas(64) float rows[SUMS];
    for (int64_t c = 0; c < C; c += 32)
        for (int64_t d = 0; d < D; d += 32)
            for (int64_t part = 0; part < 4; ++part, sums += SUMS) {  // [16 of d][16 of c]
                const int64_t column = c + part % 2 * 16, depth = d + part / 2 * 16;
                turn_pairs(reinterpret_cast<const bf16 *>(sums), 32, 16, ALL, reinterpret_cast<bf16 *>(rows));
                for (int64_t n = 0; n < std::min<int64_t>(16, C - column); ++n)
                    std::memcpy(to + (column + n) * D + depth, rows + 16 * n, 64);
            }
}

void derive(Session &tiles, const Tree &tree, const Task &task, const bf16 *g, bf16 *dx, float *found) {
    const Numbers with(tree, task);
    const More more(tree, task, with);
    const int64_t keys = task.keys(), C = whole(keys), D = tree.D, G = tree.G(), S = tree.H + 2 * tree.K;
    collect(tree, task, 0, with.rows);
    lay_turned(with.rows, C, D, with.keys_turned);
    lay_paired(with.rows, C, D, more.keys_paired);
    lay_turned(collect(tree, task, 1, with.rows), C, D, more.values_turned);
    bf16 *q_turned = more.turned, *g_turned = more.turned + G * BLOCK * D, *ds_paired = more.paired, *w_paired = more.paired + G * BLOCK * C;
    for (int64_t t = task.start; t < task.end; t += BLOCK) {
        const int64_t count = std::min(BLOCK, task.end - t), before = task.prefix + t - task.first, seen = whole(before + count);
        for (int64_t n = 0; n < G; ++n) {
            const int64_t head = task.kv * G + n;
            block_of(tree.head(t, head), S * D, count, D, with.queries);
            block_of(g + (t * tree.H + head) * D, tree.H * D, count, D, more.grads);
            over_depth(tiles, with.queries, count, with.keys_turned, seen, D, with.scores, with.stride);
            over_depth(tiles, more.grads, count, more.values_turned, seen, D, more.dweights, with.stride);
            to_dscores(tree, with, more, count, before, seen);
            over_keys(tiles, more.dscores, count, with.stride, more.keys_paired, seen, D, with.sums);
            for (int64_t row = 0; row < count; ++row)
                for (int64_t d = 0; d < D; d += 16)
                    store(dx + ((t + row) * S + head) * D + d, load(with.sums + row * D + d));
            turn_rows(with.queries, D, q_turned + n * BLOCK * D);
            turn_rows(more.grads, D, g_turned + n * BLOCK * D);
            lay_block(more.dscores, with.stride, seen, ds_paired + n * BLOCK * C);
            lay_block(with.weights, with.stride, seen, w_paired + n * BLOCK * C);
        }
        add_turned(tiles, q_turned, ds_paired, BLOCK * C, G, seen, D, more.turned_sums);
        add_turned(tiles, g_turned, w_paired, BLOCK * C, G, seen, D, more.turned_sums + C * D);
    }
    turn_back(more.turned_sums, keys, D, found);
    turn_back(more.turned_sums + C * D, keys, D, found + keys * D);
}

// The gradients of token t's keys and values: what the tasks that see it found, in their order
void add_up(const Tree &tree, const std::vector<Task> &tasks, int64_t segment, int64_t t, const float *found, bf16 *dx, float *sums) {
    const int64_t D = tree.D, S = tree.H + 2 * tree.K, width = 2 * tree.K * D;
    std::fill(sums, sums + width, 0.0f);
    for (const Task &task : tasks) {
        if (task.segment != segment && t >= task.prefix) continue;
        const int64_t key = task.segment == segment ? task.prefix + t - task.first : t;
        if (key >= task.keys()) continue;
        for (int64_t part = 0; part < 2; ++part) {
            const float *from = found + task.at + (part * task.keys() + key) * D;
            float *to = sums + (part * tree.K + task.kv) * D;
            for (int64_t d = 0; d < D; ++d) to[d] += from[d];
        }
    }
    for (int64_t i = 0; i < width; i += 16) store(dx + (t * S + tree.H) * D + i, load(sums + i));
}

}  // namespace

static void answer_all(const Tree &tree, bf16 *out, int threads) {
    const std::vector<Task> tasks = tasks_of(tree);
    luthier::Shortage shortage;
#pragma omp parallel num_threads(threads)
    {
        Session tiles;
#pragma omp for schedule(dynamic, 1)
        for (size_t n = 0; n < tasks.size(); ++n) shortage.in_thread([&] { answer(tiles, tree, tasks[n], out); });
    }
    shortage.rethrow();
}

extern "C" void luthier_tree_attention(const bf16 *x, const int64_t *segments, int64_t num_segments, int64_t P, int64_t H, int64_t K, int64_t D,
                                       float scale, bf16 *out, int threads) {
    answer_all({x, segments, num_segments, P, H, K, D, scale}, out, threads);
}

// Leaves alone, behind a prefix whose keys and values [2, P, K, D] were kept, or behind none
extern "C" void luthier_leaf_attention(const bf16 *x, const int64_t *segments, int64_t num_segments, const bf16 *prefix, int64_t P, int64_t H,
                                       int64_t K, int64_t D, float scale, bf16 *out, int threads) {
    answer_all({x, segments, num_segments, P, H, K, D, scale, prefix}, out, threads);
}

extern "C" void luthier_tree_attention_backward(const bf16 *x, const int64_t *segments, int64_t num_segments, int64_t P, int64_t H, int64_t K,
                                                int64_t D, float scale, const bf16 *g, bf16 *dx, int threads) {
    const Tree tree{x, segments, num_segments, P, H, K, D, scale};
    const std::vector<Task> tasks = tasks_of(tree);
    if (tasks.empty()) return;
    float *found = room<Here, float>(4, tasks.back().at + 2 * tasks.back().keys() * D);
    luthier::Shortage shortage;
#pragma omp parallel num_threads(threads)
    {
        Session tiles;
#pragma omp for schedule(dynamic, 1)
        for (size_t n = 0; n < tasks.size(); ++n) shortage.in_thread([&] { derive(tiles, tree, tasks[n], g, dx, found + tasks[n].at); });
        float *sums = nullptr;
        shortage.in_thread([&] { sums = room<Here, float>(1, 2 * K * D); });
        for (int64_t n = 0; n < num_segments; ++n)
#pragma omp for schedule(dynamic, 16) nowait
            for (int64_t t = segments[2 * n]; t < segments[2 * n + 1]; ++t)
                if (sums != nullptr) add_up(tree, tasks, n, t, found, dx, sums);
    }
    shortage.rethrow();
}

LUTHIER_CALL(luthier_tree_attention)
LUTHIER_CALL(luthier_leaf_attention)
LUTHIER_CALL(luthier_tree_attention_backward)
#else
extern "C" void luthier_leaf_attention(const void *, const void *, int64_t, const void *, int64_t, int64_t, int64_t, int64_t, float, void *, int) {}
extern "C" void luthier_tree_attention(const void *, const void *, int64_t, int64_t, int64_t, int64_t, int64_t, float, void *, int) {}
extern "C" void luthier_tree_attention_backward(const void *, const void *, int64_t, int64_t, int64_t, int64_t, int64_t, float, const void *, void *,
                                                int) {}
#endif
