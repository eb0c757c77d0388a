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

#include "tiles.h"

#ifdef LUTHIER_HAS_TILES
#include <algorithm>
#include <atomic>
#include <omp.h>

namespace {

using luthier::bf16;
using luthier::copy_line;
using luthier::load;
using luthier::pair_rows;
using luthier::Part;
using luthier::room;
using luthier::Rows;
using luthier::Run;
using luthier::Session;
using luthier::store;
using luthier::store_line;
using luthier::turn_pairs;
using luthier::V;
using luthier::within;
using luthier::written;
using luthier::zero_sums;

struct Here;

constexpr int64_t TILE = 512;            // numbers of a tile
constexpr int64_t LONG = 144;            // steps of 32: longer sums are made SLAB steps at a time
#if defined(LUTHIER_HAS_AMX)
constexpr int64_t STEPS = 12;             // of 2 KiB of x each: in half of a first-level cache of 48 KiB, the other half being a neighbour's
constexpr int64_t SLAB = STEPS;
constexpr int64_t PANEL_BYTES = 1 << 20;  // of a second-level cache of 2 MiB
constexpr auto FETCHED_TO = _MM_HINT_T0;
#elif defined(LUTHIER_HAS_PAIRS)
constexpr int64_t STEPS = LONG;           // measured: the second level gives x in time too, and sums that wait in memory cost a tenth
constexpr int64_t SLAB = 18;
constexpr int64_t PANEL_BYTES = 1 << 18;  // of 1 MiB
constexpr auto FETCHED_TO = _MM_HINT_T1;  // the first level is too small for what is laid out and what comes next
#else
constexpr int64_t STEPS = 18;  // measured
constexpr int64_t SLAB = STEPS;
constexpr int64_t PANEL_BYTES = 1 << 18;  // of 512 KiB
constexpr auto FETCHED_TO = _MM_HINT_T1;
#endif
constexpr int64_t MANY_BLOCKS = 12;  // of 32 tokens

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

// 32 columns of w from `o`, all parts: for each 32 of k, the tile of columns 0 to 15, then that of 16 to 31
void lay_columns(const Product &p, int64_t o, bf16 *panel) {
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
Rows tokens(const Part &part, int64_t t, int64_t rows, bf16 *room) {
    const bf16 *x = part.x + t * part.x_stride;
    if (rows >= 32 && part.K % 32 == 0 && part.x_stride % 1024 != 0) return {x, 16 * part.x_stride, 32, 2 * part.x_stride};
    for (int64_t row = 0; row < 32; ++row)
        for (int64_t k = 0; k < part.K; k += 32)
            copy_line(room + k * 32 + row * 32, x + row * part.x_stride + k, row < rows ? part.K - k : 0);
    return {room, TILE, 2 * TILE, 64, rows};
}

// 32 tokens and 32 columns of sums, [2][2][16][16], to out
void write(const Product &p, const float *sums, int64_t t, int64_t o, int64_t columns = 32) {
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

// A share of the work: blocks of 32 tokens from t to t_end, of 32 columns from o to o_end
struct Share {
    int64_t t, t_end, o, o_end;
};

// The same runs with the columns that are laid out next
void next_columns(std::vector<Run> &runs, int64_t block) {
    for (Run &run : runs) run.columns.low += block, run.columns.high += block;
}

// What of each part lies between two steps of all
void runs_of(const Product &p, const std::vector<Run> &whole, int64_t from, int64_t to, const bf16 *columns, std::vector<Run> &runs) {
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
void compute(Session &tiles, const Product &p, const Share &share, int64_t steps, bool is_laid) {
    const int64_t block = steps * 2 * TILE, width = share.o_end - share.o, pieces = (steps + STEPS - 1) / STEPS;
    bf16 *laid = room<Here>(0, (width + 1) * block + width * 4 * TILE), *panel = laid + block;
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
std::vector<Part> between(const Product &p, int64_t from, int64_t to) {
    std::vector<Part> parts;
    for (int64_t i = 0, before = 0; i < p.num_parts; before += p.parts[i++].steps()) {
        const Part &part = p.parts[i];
        const int64_t first = 32 * (std::max(from, before) - before), last = std::min(32 * (to - before), part.K);
        if (first < last) parts.push_back({part.x + first, part.x_stride, last - first, part.w + first * part.k_stride, part.k_stride, part.o_stride});
    }
    return parts;
}

// `compute` for long sums: SLAB at a time, in the same order
void compute_long(Session &tiles, const Product &p, const Share &share, int64_t steps) {
    const int64_t width = share.o_end - share.o;
    bf16 *laid = room<Here>(0, (width + 1) * SLAB * 2 * TILE), *panel = laid + SLAB * 2 * TILE;
    float *sums = room<Here, float>(0, (share.t_end - share.t) * width * 2 * TILE);
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

// So many columns that their panel stays where it is, so many tokens that their sums do; every group of columns reads all of x
void wide_long(const Product &p, int64_t threads) {
    const int64_t columns = (p.O + 31) / 32, blocks = (p.T + 31) / 32, steps = p.steps();
    const int64_t most = std::max<int64_t>(1, PANEL_BYTES / (SLAB * 4 * TILE));
    const int64_t groups = std::min(columns, std::max(2 * threads, (columns + most - 1) / most)), ranges = (blocks + MANY_BLOCKS - 1) / MANY_BLOCKS;
#pragma omp parallel for num_threads(std::min(threads, groups * ranges)) schedule(dynamic, 1)
    for (int64_t n = 0; n < groups * ranges; ++n) {
        const int64_t group = n / ranges, range = n % ranges;
        Session tiles;
        compute_long(tiles, p,
                     {blocks * range / ranges, blocks * (range + 1) / ranges, columns * group / groups, columns * (group + 1) / groups}, steps);
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

void wide(const Product &p, int64_t threads) {
    const int64_t columns = (p.O + 31) / 32, blocks = (p.T + 31) / 32, steps = p.steps();
    if (steps > LONG) return wide_long(p, threads);
    const int64_t most = std::max<int64_t>(1, PANEL_BYTES / (steps * 4 * TILE));
    // With many tokens as few groups as there are threads: each group reads all tokens, from far away. With few, laying out is the most of it.
    const int64_t wanted = std::max<int64_t>(threads * (blocks >= MANY_BLOCKS ? 1 : 4), (columns + most - 1) / most);
    const int64_t width = (columns + wanted - 1) / wanted, groups = (columns + width - 1) / width;
    const int64_t ranges = std::clamp<int64_t>((4 * threads + groups - 1) / groups, 1, blocks);
    Shares shares(groups, ranges);
#pragma omp parallel num_threads(std::min(threads, groups * ranges))
    {
        Session tiles;
        int64_t group = omp_get_thread_num() * groups / omp_get_num_threads() % groups, laid = -1, range = 0;
        for (; shares.next(group, range); laid = group) {
            const Share share{blocks * range / ranges, blocks * (range + 1) / ranges, group * width, std::min((group + 1) * width, columns)};
            compute(tiles, p, share, steps, laid == group);
        }
    }
}

#ifdef LUTHIER_HAS_AMX
// ---- a few tokens -----------------------------------------------------------------------------------------------------------------------
// At most 32 tokens, every w as [O, K], every K whole thirty-twos: reading w is all the work. Its rows are the left factor as they lie,
// x^T is the right one, laid out once; while 32 rows are multiplied, the next 32 are fetched, in the order they lie in memory. Sums are made
// in the order of `wide`, so that an answer does not depend on how many are computed at once.

// x^T of all parts as pairs: for each 32 of k, the tile of tokens 0 to 15, then, where there are more, that of 16 to 31
void turn_tokens(const Product &p, bf16 *tokens) {
    for (int64_t i = 0; i < p.num_parts; ++i)
        for (int64_t k = 0; k < p.parts[i].K; k += 32)
            for (int64_t t = 0; t < p.T; t += 16, tokens += TILE)
                turn_pairs(p.parts[i].x + t * p.parts[i].x_stride + k, p.parts[i].x_stride, p.T - t, 32, tokens);
}

// 16 rows of w and 16 tokens of sums, [row][token], to out
void write_turned(const Product &p, const float *sums, int64_t t, int64_t o) {
    alignas(64) float turned[256];
    turn_pairs(reinterpret_cast<const bf16 *>(sums), 32, 16, 32, reinterpret_cast<bf16 *>(turned));
    const int64_t kept = within(p.O - o);
    V bias = {};
    if (p.bias != nullptr) bias = load(p.bias + o, kept);
    for (int64_t token = t; token < std::min(t + 16, p.T); ++token) {
        V row = load(turned + 16 * (token - t)) + bias;
        if (p.residual != nullptr) row += load(p.residual + token * p.residual_stride + o, kept);
        store(p.out + token * p.out_stride + o, row, kept);
    }
}

// One part of 32 rows of w from o, or of what is left of them; `b` and what is returned: its tokens, and those of the next part
const bf16 *few_steps(Session &tiles, const Part &part, const bf16 *b, int64_t o, bool more_rows, bool more_tokens) {
    const int64_t row_bytes = 2 * part.o_stride, second = 16 * part.o_stride;
    const bf16 *a = part.w + o * part.o_stride, *next = a + 32 * part.o_stride;
    for (int64_t step = 0; step < part.steps(); ++step, a += 32, next += 32 * 32, b += TILE) {
        for (int line = 0; line < 32; ++line) _mm_prefetch(next + 32 * line, _MM_HINT_T1);
        tiles.stream<4>(a, row_bytes);
        tiles.load<6>(b, 64);
        tiles.add<0, 4, 6>();
        if (more_rows) {
            tiles.stream<5>(a + second, row_bytes);
            tiles.add<2, 5, 6>();
        }
        if (!more_tokens) continue;
        b += TILE;
        tiles.load<7>(b, 64);
        tiles.add<1, 4, 7>();
        if (more_rows) tiles.add<3, 5, 7>();
    }
    return b;
}

void few_rows(Session &tiles, const Product &p, const bf16 *tokens, int64_t o) {
    const bool more_rows = p.O - o > 16, more_tokens = p.T > 16;
    const int64_t last = std::min<int64_t>(16, p.O - o - (more_rows ? 16 : 0));  // rows of the last tile
    alignas(64) float sums[1024];
    if (last < 16) tiles.rows(more_rows ? 1 << 5 | 1 << 2 | 1 << 3 : 1 << 4 | 1 << 0 | 1 << 1, static_cast<int>(last));
    zero_sums(tiles);
    for (int64_t i = 0; i < p.num_parts; ++i) tokens = few_steps(tiles, p.parts[i], tokens, o, more_rows, more_tokens);
    tiles.square_sums(sums);
    if (last < 16) tiles.rows(0, 16);
    for (int64_t row = 0; row < (more_rows ? 2 : 1); ++row)
        for (int64_t t = 0; t < p.T; t += 16) write_turned(p, sums + row * 512 + t / 16 * 256, t, o + 16 * row);
}

void few(const Product &p, int64_t threads) {
    bf16 *tokens = room<Here>(0, p.steps() * 2 * TILE);
    turn_tokens(p, tokens);
    const int64_t blocks = (p.O + 31) / 32, shares = std::min(4 * threads, blocks);
#pragma omp parallel num_threads(std::min(threads, shares))
    {
        Session tiles;
#pragma omp for schedule(dynamic, 1)
        for (int64_t n = 0; n < shares; ++n)
            for (int64_t block = blocks * n / shares; block < blocks * (n + 1) / shares; ++block) few_rows(tiles, p, tokens, 32 * block);
    }
}

#else
// ---- a few tokens, without registers for tiles --------------------------------------------------------------------------------------------
// At most FEW tokens, every w as [O, K], every K whole thirty-twos: reading w is all the work, so it is turned in registers and kept nowhere.
// Sums are made in the order of `wide`. For more tokens that is as fast.
constexpr int64_t FEW = 8;

#ifdef LUTHIER_HAS_PAIRS
constexpr int few_columns(int) { return 16; }

// 16 rows of w from o
template <int T> void few_rows(const Product &p, const float *, int64_t o) {
    __m512 sums[T];
    for (int t = 0; t < T; ++t) sums[t] = _mm512_setzero_ps();
    for (int64_t i = 0; i < p.num_parts; ++i) {
        const Part &part = p.parts[i];
        const bf16 *w = part.w + o * part.o_stride, *next = w + 16 * part.o_stride;
        for (int64_t k = 0; k < part.K; k += 32, next += 16 * 32) {
            for (int line = 0; line < 16; ++line) _mm_prefetch(next + 32 * line, FETCHED_TO);
            __m512i pairs[16];
            turn_pairs(w + k, part.o_stride, p.O - o, 32, pairs);
            for (int t = 0; t < T; ++t)
                for (int pair = 0; pair < 16; ++pair) {
                    int32_t number;
                    std::memcpy(&number, part.x + t * part.x_stride + k + 2 * pair, 4);
                    sums[t] = _mm512_dpbf16_ps(sums[t], (__m512bh)pairs[pair], (__m512bh)_mm512_set1_epi32(number));
                }
        }
    }
    alignas(64) float square[2][16][16] = {};
    for (int t = 0; t < T; ++t) _mm512_store_ps(square[0][t], sums[t]);
    write(p, square[0][0], 0, o, 16);
}
#else
// So many rows of w at once that several sums are on their way where there are few tokens: each waits for the one before it. Measured: 1.5 times
// as fast as row after row with one token
constexpr int few_columns(int tokens) { return tokens == 1 ? 32 : tokens <= 4 ? 16 : 8; }

// few_columns(T) rows of w from o; `x`: all tokens of all parts as fp32, one token behind another
template <int T> void few_rows(const Product &p, const float *x, int64_t o) {
    constexpr int GROUPS = few_columns(T) / 8;
    const __m256 odd = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000u)));
    const int64_t apart = 32 * p.steps();
    __m256 sums[GROUPS][T];
    for (int group = 0; group < GROUPS; ++group)
        for (int t = 0; t < T; ++t) sums[group][t] = _mm256_setzero_ps();
    for (int64_t i = 0; i < p.num_parts; ++i) {
        const Part &part = p.parts[i];
        const bf16 *w = part.w + o * part.o_stride, *next = w + 8 * GROUPS * part.o_stride;
        for (int64_t k = 0; k < part.K; k += 16, x += 16, next += 8 * GROUPS * 16) {
            for (int line = 0; line < 4 * GROUPS; ++line) _mm_prefetch(next + 32 * line, FETCHED_TO);
            __m256i pairs[GROUPS][8];
            for (int group = 0; group < GROUPS; ++group)
                luthier::turn_eight(w + 8 * group * part.o_stride + k, part.o_stride, p.O - o - 8 * group, 16, pairs[group]);
            for (int pair = 0; pair < 8; ++pair)
                for (int t = 0; t < T; ++t) {
                    const float *number = x + t * apart + 2 * pair;
                    const __m256 first = _mm256_broadcast_ss(number), second = _mm256_broadcast_ss(number + 1);
                    for (int group = 0; group < GROUPS; ++group) {
                        const __m256i both = _mm256_load_si256(&pairs[group][pair]);
                        sums[group][t] = _mm256_fmadd_ps(first, _mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), sums[group][t]);
                        sums[group][t] = _mm256_fmadd_ps(second, _mm256_and_ps(_mm256_castsi256_ps(both), odd), sums[group][t]);
                    }
                }
        }
    }
    alignas(64) float square[2][16][16] = {};
    for (int group = 0; group < GROUPS; ++group)
        for (int t = 0; t < T; ++t) _mm256_store_ps(square[group / 2][t] + group % 2 * 8, sums[group][t]);
    write(p, square[0][0], 0, o, 8 * GROUPS);
}
#endif

template <int T> void few(const Product &p, int64_t threads) {
    constexpr int64_t COLUMNS = few_columns(T);
    float *x = nullptr;
#ifndef LUTHIER_HAS_PAIRS
    const int64_t apart = 32 * p.steps();
    x = room<Here, float>(0, T * apart);
    for (int64_t i = 0, at = 0; i < p.num_parts; at += p.parts[i++].K)
        for (int64_t t = 0; t < T; ++t)
            for (int64_t k = 0; k < p.parts[i].K; k += 16) store(x + t * apart + at + k, load(p.parts[i].x + t * p.parts[i].x_stride + k));
#endif
    const int64_t blocks = (p.O + COLUMNS - 1) / COLUMNS, shares = std::min(4 * threads, blocks);
#pragma omp parallel for num_threads(std::min(threads, shares)) schedule(dynamic, 1)
    for (int64_t n = 0; n < shares; ++n)
        for (int64_t block = blocks * n / shares; block < blocks * (n + 1) / shares; ++block) few_rows<T>(p, x, COLUMNS * block);
}

void few(const Product &p, int64_t threads) {
    constexpr void (*ways[FEW])(const Product &, int64_t) = {few<1>, few<2>, few<3>, few<4>, few<5>, few<6>, few<7>, few<8>};
    (p.T > FEW ? wide : ways[p.T - 1])(p, threads);
}
#endif

}  // namespace

extern "C" void luthier_wide(const Part *parts, int64_t num_parts, int64_t T, int64_t O, const bf16 *bias, const bf16 *residual,
                             int64_t residual_stride, bf16 *out, int64_t out_stride, int threads) {
    wide({parts, num_parts, T, O, bias, residual, residual_stride, out, out_stride}, threads);
}
extern "C" void luthier_few(const Part *parts, int64_t num_parts, int64_t T, int64_t O, const bf16 *bias, const bf16 *residual,
                            int64_t residual_stride, bf16 *out, int64_t out_stride, int threads) {
    few({parts, num_parts, T, O, bias, residual, residual_stride, out, out_stride}, threads);
}
#else
extern "C" void luthier_wide(const void *, int64_t, int64_t, int64_t, const void *, const void *, int64_t, void *, int64_t, int) {}
extern "C" void luthier_few(const void *, int64_t, int64_t, int64_t, const void *, const void *, int64_t, void *, int64_t, int) {}
#endif
