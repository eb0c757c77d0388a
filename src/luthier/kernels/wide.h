// Products with the large matrices of a layer on tiles:  out = sum over parts of x w  (+ bias) (+ residual).
//
// A part is a pair of factors, x [T, K] and w [K, O]: the layer's weight and its adapter's are two parts of one product, so that all is
// summed in fp32 and rounded to bf16 once. General libraries reach a third of what the tiles can do on a few hundred tokens. Called by
// wide.py, which takes torch's own products elsewhere. The order of a sum does not depend on the number of threads.
//
//   1. Threads take shares, of columns of w and of tokens, as they get free.
//   2. The panel of w of a share is laid out as pairs of rows, as the tiles read it; it stays in the second-level cache.
//   3. For each 32 tokens, x is laid out tile by tile, in the first-level cache, and meets every 32 columns of the panel:
//      2 x 2 tiles of sums, two loads of each side for four products. The panel's loads pass the first-level cache by.
//   4. Where the panel of so long a sum would not stay there (a vocabulary), 2. and 3. are done for some of k at a time, sums waiting in memory.

#pragma once

#include "product.h"
#include "together.h"

#ifdef LUTHIER_HAS_TILES
#include <algorithm>
#include <optional>

namespace luthier {

class Wide;

constexpr int64_t TILE = 512;  // numbers of a tile
constexpr int64_t LONG = 144;  // steps of 32: longer sums are made SLAB steps at a time
#if defined(LUTHIER_HAS_AMX)
constexpr int64_t STEPS = 12;  // of 2 KiB of x each: in half of a first-level cache of 48 KiB, the other half being a neighbour's
constexpr int64_t SLAB = STEPS;
constexpr int64_t PANEL_BYTES = 1 << 20;  // of a second-level cache of 2 MiB
#elif defined(LUTHIER_HAS_PAIRS)
constexpr int64_t STEPS = LONG;  // measured: the second level gives x in time too, and sums that wait in memory cost a tenth
constexpr int64_t SLAB = 18;
constexpr int64_t PANEL_BYTES = 1 << 18;  // of 1 MiB
#else
constexpr int64_t STEPS = 18;  // measured
constexpr int64_t SLAB = STEPS;
constexpr int64_t PANEL_BYTES = 1 << 18;  // of 512 KiB
#endif
constexpr int64_t MANY_BLOCKS = 12;  // of 32 tokens

// 32 columns of w from `o`, all parts: for each 32 of k, the tile of columns 0 to 15, then that of 16 to 31
inline void lay_columns(const Product &p, int64_t o, bf16 *panel) {
    for (int64_t i = 0; i < p.num_parts; ++i) {
        const Part &part = p.parts[i];
        for (int64_t k = 0; k < part.K; k += 32, panel += 2 * TILE) {
            const bf16 *w = part.w + k * part.k_stride + o * part.o_stride;
            for (int64_t row = 0; row < 32; ++row) _mm_prefetch(w + row * (part.o_stride + part.k_stride - 1) + 32 * part.o_stride, FETCHED_TO);
            if (part.o_stride == 1) {
                pair_rows(w, part.k_stride, part.K - k, p.O - o, panel, panel + TILE);
            } else {
                turn_pairs(w, part.o_stride, p.O - o, part.K - k, panel);
                turn_pairs(w + 16 * part.o_stride, part.o_stride, p.O - o - 16, part.K - k, panel + TILE);
            }
        }
    }
}

// 32 tokens of one part's x: where the tiles are read from. In place, unless rows or columns are missing at an end or the rows lie a
// multiple of 2 KiB apart, where they push each other out of the cache; then laid out tile by tile, zeros for what is missing.
inline Rows tokens(const Part &part, int64_t t, int64_t rows, bf16 *room) {
    const bf16 *x = part.x + t * part.x_stride;
    if (rows >= 32 && part.K % 32 == 0 && part.x_stride % 1024 != 0) return {x, 16 * part.x_stride, 32, 2 * part.x_stride};
    for (int64_t row = 0; row < 32; ++row)
        for (int64_t k = 0; k < part.K; k += 32)
            copy_line(room + k * 32 + row * 32, x + row * part.x_stride + k, row < rows ? part.K - k : 0);
    return {room, TILE, 2 * TILE, 64, rows};
}

// A share of the work: blocks of 32 tokens from t to t_end, of 32 columns from o to o_end
struct Share {
    int64_t t, t_end, o, o_end;
};

// The same runs with the columns that are laid out next
inline void next_columns(std::vector<Run> &runs, int64_t block) {
    for (Run &run : runs) run.columns.low += block, run.columns.high += block;
}

// What of each part lies between two steps of all
inline void runs_of(const Product &p, const std::vector<Run> &whole, int64_t from, int64_t to, const bf16 *columns, std::vector<Run> &runs) {
    runs.clear();
    for (int64_t i = 0, before = 0; i < p.num_parts; before += p.parts[i++].steps()) {
        const int64_t first = std::max(from, before), last = std::min(to, before + p.parts[i].steps());
        if (first >= last) continue;
        const bf16 *here = columns + first * 2 * TILE;
        runs.push_back({whole[i].rows, {here, here + TILE, 2 * TILE}, last - first});
        runs.back().rows.first += (first - before) * whole[i].rows.step;
        if (last == before + p.parts[i].steps()) runs.back().pairs = (p.parts[i].K - 32 * (last - before - 1) + 1) / 2;
    }
}

// `is_laid`: this thread's last share had the same columns
inline void compute(Session &tiles, const Product &p, const Share &share, int64_t steps, bool is_laid) {
    const int64_t block = steps * 2 * TILE, width = share.o_end - share.o, pieces = (steps + STEPS - 1) / STEPS;
    bf16 *laid = room<Wide>(0, (width + 1) * block + width * 4 * TILE), *panel = laid + block;
    float *sums = reinterpret_cast<float *>(panel + width * block);
    for (int64_t n = 0; n < width && !is_laid; ++n) lay_columns(p, 32 * (share.o + n), panel + n * block);
    std::vector<Run> whole(p.num_parts), runs;
    for (int64_t t = share.t; t < share.t_end; ++t) {
        for (int64_t i = 0, before = 0; i < p.num_parts; before += p.parts[i++].steps())
            whole[i].rows = tokens(p.parts[i], 32 * t, p.T - 32 * t, laid + before * 2 * TILE);
        for (int64_t piece = 0; piece < pieces; ++piece) {
            runs_of(p, whole, steps * piece / pieces, steps * (piece + 1) / pieces, panel, runs);
            for (int64_t n = 0; n < width; ++n, next_columns(runs, block)) {
                float *waiting = pieces > 1 ? sums + n * 2 * TILE : nullptr;
                tiles.square<true>(runs.data(), static_cast<int64_t>(runs.size()), piece == 0, n > 0, waiting);
                if (piece == pieces - 1) write(p, waiting != nullptr ? waiting : tiles.square_sums(sums), 32 * t, 32 * (share.o + n));
            }
        }
    }
}

// The parts between two steps of all
inline std::vector<Part> between(const Product &p, int64_t from, int64_t to) {
    std::vector<Part> parts;
    for (int64_t i = 0, before = 0; i < p.num_parts; before += p.parts[i++].steps()) {
        const Part &part = p.parts[i];
        const int64_t first = 32 * (std::max(from, before) - before), last = std::min(32 * (to - before), part.K);
        if (first < last) parts.push_back({part.x + first, part.x_stride, last - first, part.w + first * part.k_stride, part.k_stride, part.o_stride});
    }
    return parts;
}

// `compute` for long sums: SLAB at a time, in the same order
inline void compute_long(Session &tiles, const Product &p, const Share &share, int64_t steps) {
    const int64_t width = share.o_end - share.o;
    bf16 *laid = room<Wide>(0, (width + 1) * SLAB * 2 * TILE), *panel = laid + SLAB * 2 * TILE;
    float *sums = room<Wide, float>(0, (share.t_end - share.t) * width * 2 * TILE);
    std::vector<Run> whole, runs;
    for (int64_t from = 0; from < steps; from += SLAB) {
        const std::vector<Part> parts = between(p, from, from + SLAB);
        Product some = p;
        some.parts = parts.data(), some.num_parts = static_cast<int64_t>(parts.size());
        const int64_t own = some.steps(), block = own * 2 * TILE;
        for (int64_t n = 0; n < width; ++n) lay_columns(some, 32 * (share.o + n), panel + n * block);
        whole.resize(parts.size());
        for (int64_t t = share.t; t < share.t_end; ++t) {
            for (int64_t i = 0, before = 0; i < some.num_parts; before += parts[i++].steps())
                whole[i].rows = tokens(parts[i], 32 * t, p.T - 32 * t, laid + before * 2 * TILE);
            runs_of(some, whole, 0, own, panel, runs);
            for (int64_t n = 0; n < width; ++n, next_columns(runs, block)) {
                float *here = sums + ((t - share.t) * width + n) * 2 * TILE;
                tiles.square<true>(runs.data(), static_cast<int64_t>(runs.size()), from == 0, n > 0, here);
                if (from + SLAB >= steps) write(p, here, 32 * t, 32 * (share.o + n));
            }
        }
    }
}

// Groups of columns in ranges of tokens. A thread stays with a group, whose panel it has laid out, until the group is done; then it takes one that
// nobody has begun, or helps with the one that has most left: the threads of a shared machine are not equally fast.
class Shares {
  public:
    Shares(int64_t groups, int64_t ranges) : taken(groups), ranges(ranges) {}

    // The next range of `group`, which becomes another one where it is done; false where all are
    bool next(int64_t &group, int64_t &range) {
        while (group >= 0) {
            range = taken[group].fetch_add(1);
            if (range < ranges) return true;
            group = fullest(group);
        }
        return false;
    }

  private:
    // Of equals the next behind `group`, whose beginning has been fetched
    int64_t fullest(int64_t group) const {
        const int64_t groups = static_cast<int64_t>(taken.size());
        int64_t best = -1, least = ranges;
        for (int64_t n = 1; n <= groups; ++n) {
            const int64_t other = (group + n) % groups;
            if (const int64_t done = taken[other].load(); done < least) best = other, least = done;
        }
        return best;
    }
    std::vector<std::atomic<int64_t>> taken;
    int64_t ranges;
};

// One product for `together`. The parts are kept: they may be gone when it is computed.
class Wide {
  public:
    Wide(const Product &product, int64_t threads) : p(product), parts(product.parts, product.parts + product.num_parts), steps(product.steps()) {
        p.parts = parts.data();
        plan(threads);
        shares.emplace(groups, ranges);
    }
    Wide(const Wide &) = delete;
    Wide &operator=(const Wide &) = delete;
    int64_t numbers() const { return std::max(p.T, p.O) * 32 * steps; }
    void run() {
        Session tiles;
        int64_t group = omp_get_thread_num() * groups / omp_get_num_threads() % groups, laid = -1, range = 0;
        for (; shares->next(group, range); laid = group) {
            const Share share{blocks * range / ranges, blocks * (range + 1) / ranges, columns * group / groups, columns * (group + 1) / groups};
            if (steps > LONG) compute_long(tiles, p, share, steps);
            else compute(tiles, p, share, steps, laid == group);
        }
    }

  private:
    void plan(int64_t threads) {
        blocks = (p.T + 31) / 32, columns = (p.O + 31) / 32;
        const int64_t most = std::max<int64_t>(1, PANEL_BYTES / (std::min(steps, steps > LONG ? SLAB : steps) * 4 * TILE));
        if (steps > LONG) {
            // So many columns that their panel stays where it is, so many tokens that their sums do; every group of columns reads all of x
            groups = std::min(columns, std::max(2 * threads, (columns + most - 1) / most));
            ranges = (blocks + MANY_BLOCKS - 1) / MANY_BLOCKS;
            return;
        }
        // With many tokens as few groups as there are threads: each group reads all tokens, from far away. With few, laying out is the most of it.
        groups = std::clamp<int64_t>(std::max<int64_t>(threads * (blocks >= MANY_BLOCKS ? 1 : 4), (columns + most - 1) / most), 1, columns);
        ranges = std::clamp<int64_t>((4 * threads + groups - 1) / groups, 1, blocks);
    }
    Product p;
    std::vector<Part> parts;
    int64_t steps, blocks = 0, columns = 0, groups = 0, ranges = 0;
    std::optional<Shares> shares;
};

}  // namespace luthier
#endif
