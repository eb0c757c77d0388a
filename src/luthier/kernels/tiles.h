// Tiles of bf16 numbers and their sums, and what the files that use them share. Three kinds: the registers of processors with AMX; the same in
// memory with AVX-512's products of pairs (AMD from Zen 4 on, Intel where AMX is missing or hidden by a virtual machine); or with AVX2, where
// numbers are widened to fp32 as they are multiplied: nine tenths of fp32's speed, half of its memory (AMD up to Zen 3, most laptops by Intel).
#pragma once

#include "memory.h"
#include "pairs.h"

#ifdef LUTHIER_HAS_TILES
#include <vector>

#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
#define LUTHIER_HAS_AMX
#endif

namespace luthier {

// One of the products that are summed in wide.h: x [T, K] and w [K, O], either side of which lies in one piece
struct Part {
    const bf16 *x;
    int64_t x_stride, K;
    const bf16 *w;
    int64_t k_stride, o_stride;
    int64_t steps() const { return (K + 31) / 32; }
};

// Factors of a square of 2 x 2 tiles. 32 rows: the first of them, numbers to the other 16 and to the next 32 of k, bytes from row to row; sums
// of rows from `count` on are not asked for.
struct Rows {
    const bf16 *first;
    int64_t second, step, bytes, count = 32;
};
// 32 columns: the right factor of the first 16, of the others, numbers to the next 32 of k
struct Columns {
    const bf16 *low, *high;
    int64_t step;
};
// Products along `steps` times 32 of k, of which the last has `pairs` pairs that are not 0
struct Run {
    Rows rows;
    Columns columns;
    int64_t steps, pairs = 16;
};

// Between writing memory in C++ and reading it into a tile: the compiler does not know that a load of a tile reads.
inline void written() { asm volatile("" ::: "memory"); }

// A thread's tiles, 0 to 7. A tile is 16 rows of 64 bytes: 32 numbers of a row (left factor), 16 pairs of rows (right factor), 16 sums.
#ifdef LUTHIER_HAS_AMX
struct alignas(64) Tiles {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// Sets the tiles up for this thread, and leaves them as they were found. In words of assembler because the compiler's own functions name 8
// of the 64 bytes as what they read, and it then leaves out the writing of the others; and because they take no number from a template.
class Session {
  public:
    Session() {
        asm volatile("sttilecfg %0" : "=m"(before));
        rows(0, 16);
    }
    Session(const Session &) = delete;
    Session &operator=(const Session &) = delete;
    // The tiles in `last` have `count` rows, a block at the end of a matrix; the others 16.
    void rows(int last, int count) {
        Tiles tiles;
        for (int n = 0; n < 8; ++n) tiles.bytes[n] = 64, tiles.rows[n] = static_cast<uint8_t>((last >> n) & 1 ? count : 16);
        configure(tiles);
    }
    ~Session() {
        if (before.palette == 0) asm volatile("tilerelease");
        else configure(before);
    }
    template <int N> void zero() { asm volatile("tilezero %%tmm%c0" ::"i"(N)); }
    // Rows `bytes` apart. A factor is read when it is multiplied: it must not change before. `stream`: past the first-level cache.
    template <int N> void load(const bf16 *factor, int64_t bytes) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(factor), "r"(bytes), "i"(N));
    }
    template <int N> void stream(const bf16 *factor, int64_t bytes) {
        asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(factor), "r"(bytes), "i"(N));
    }
    template <int N> void load(const float *sums) { asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(sums), "r"(int64_t{64}), "i"(N)); }
    template <int N> void store(float *sums, int64_t bytes = 64) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(sums), "r"(bytes), "i"(N) : "memory");
    }
    // The sums in To, and the products of 32 numbers each of Left and Right
    template <int To, int Left, int Right> void add() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(To), "i"(Left), "i"(Right));
    }
    // Tiles 0 to 3, 32 rows and 32 columns: all runs, added to what there is, or to 0 where this is the first. PASSING: columns are read past the
    // first-level cache. `same_rows`: those of the last call, with other columns. `at`: where the sums wait in memory between two calls, one tile
    // behind another, if they do.
    template <bool PASSING> void square(const Run *runs, int64_t count, bool is_first, bool same_rows = false, float *at = nullptr) {
        (void)same_rows;  // read where they lie
        written();
        if (is_first) zero<0>(), zero<1>(), zero<2>(), zero<3>();
        else if (at != nullptr) load<0>(at), load<1>(at + 256), load<2>(at + 512), load<3>(at + 768);
        for (const Run *run = runs; run < runs + count; ++run) {
            const Rows &rows = run->rows;
            const bf16 *a = rows.first, *low = run->columns.low, *high = run->columns.high;
            for (int64_t step = 0; step < run->steps; ++step, a += rows.step, low += run->columns.step, high += run->columns.step) {
                load<4>(a, rows.bytes);
                load<5>(a + rows.second, rows.bytes);
                if constexpr (PASSING) stream<6>(low, 64), stream<7>(high, 64);
                else load<6>(low, 64), load<7>(high, 64);
                add<0, 4, 6>();
                add<2, 5, 6>();
                add<1, 4, 7>();
                add<3, 5, 7>();
            }
        }
        if (at != nullptr) square_sums(at);
    }
    // The sums of tiles 0 to 3, one tile behind another: in `to`, or where they are
    const float *square_sums(float *to) {
        store<0>(to);
        store<1>(to + 256);
        store<2>(to + 512);
        store<3>(to + 768);
        return to;
    }

  private:
    static void configure(const Tiles &tiles) { asm volatile("ldtilecfg %0" ::"m"(tiles)); }
    Tiles before;
};
#else
class Session {
  public:
    Session() { rows(0, 16); }
    Session(const Session &) = delete;
    Session &operator=(const Session &) = delete;
    void rows(int last, int count) {
        for (int n = 0; n < 8; ++n) counts[n] = (last >> n) & 1 ? count : 16;
    }
    template <int N> void zero() { std::memset(sums[N], 0, sizeof sums[N]); }
    template <int N> void load(const bf16 *factor, int64_t bytes) { factors[N] = factor, strides[N] = bytes / 2; }
    template <int N> void stream(const bf16 *factor, int64_t bytes) { load<N>(factor, bytes); }
    template <int N> void load(const float *from) { std::memcpy(sums[N], from, sizeof sums[N]); }
    template <int N> void store(float *to, int64_t bytes = 64) {
        for (int row = 0; row < counts[N]; ++row) std::memcpy(to + row * (bytes / 4), sums[N] + 16 * row, 64);
    }
    template <int To, int Left, int Right> void add() {
        if (counts[To] == 16) products<16>(sums[To], factors[Left], strides[Left], factors[Right]);
        else
            for (int row = 0; row < counts[To]; ++row) products<1>(sums[To] + 16 * row, factors[Left] + row * strides[Left], 0, factors[Right]);
    }
    template <bool> void square(const Run *runs, int64_t count, bool is_first, bool same_rows = false, float *at = nullptr) {
        const int64_t rows = std::min<int64_t>(32, runs[0].rows.count);
        if (at == nullptr) at = sums[0];
#ifdef LUTHIER_HAS_PAIRS
        (void)same_rows;  // read where they lie
        int64_t row = 0;
        for (; row + 8 <= rows; row += 8) rows_of_square<8>(at, row, runs, count, is_first);
        if (rows & 4) rows_of_square<4>(at, row, runs, count, is_first), row += 4;
        if (rows & 2) rows_of_square<2>(at, row, runs, count, is_first), row += 2;
        if (rows & 1) rows_of_square<1>(at, row, runs, count, is_first);
#else
        if (!same_rows) widen_rows(rows, runs, count);
        for (int half = 0; half < 2; ++half) {  // its columns stay in the first-level cache for all rows
            int64_t row = 0;
            for (; row + 4 <= rows; row += 4) rows_of_square<4>(at, row, half, runs, count, is_first);
            if (rows & 2) rows_of_square<2>(at, row, half, runs, count, is_first), row += 2;
            if (rows & 1) rows_of_square<1>(at, row, half, runs, count, is_first);
        }
#endif
    }
    const float *square_sums(float *) { return sums[0]; }

  private:
#ifdef LUTHIER_HAS_PAIRS
    // ROWS rows of 32 columns: two registers of sums a row, each of its pairs read once for both. Never inlined: where it is, the compiler keeps a
    // sum on the stack, and products are 15 % slower.
    template <int ROWS> __attribute__((noinline)) static void rows_of_square(float *at, int64_t start, const Run *runs, int64_t count, bool is_first) {
        float *to = at + start / 16 * 512 + start % 16 * 16;
        __m512 low[ROWS], high[ROWS];
        for (int row = 0; row < ROWS; ++row) {
            low[row] = is_first ? _mm512_setzero_ps() : _mm512_load_ps(to + 16 * row);
            high[row] = is_first ? _mm512_setzero_ps() : _mm512_load_ps(to + 256 + 16 * row);
        }
        for (const Run *run = runs; run < runs + count; ++run) {
            const int64_t apart = run->rows.bytes / 2;
            const bf16 *left = run->rows.first + start / 16 * run->rows.second + start % 16 * apart;
            const bf16 *b = run->columns.low, *c = run->columns.high;
            for (int64_t step = 1; step <= run->steps; ++step, left += run->rows.step, b += run->columns.step, c += run->columns.step)
                for (int64_t pair = 0, pairs = step < run->steps ? 16 : run->pairs; pair < pairs; ++pair) {
                    const __m512bh first = (__m512bh)_mm512_loadu_si512(b + 32 * pair), second = (__m512bh)_mm512_loadu_si512(c + 32 * pair);
                    for (int row = 0; row < ROWS; ++row) {
                        int32_t number;
                        std::memcpy(&number, left + row * apart + 2 * pair, 4);
                        const __m512bh numbers = (__m512bh)_mm512_set1_epi32(number);
                        low[row] = _mm512_dpbf16_ps(low[row], numbers, first), high[row] = _mm512_dpbf16_ps(high[row], numbers, second);
                    }
                }
        }
        for (int row = 0; row < ROWS; ++row) _mm512_store_ps(to + 16 * row, low[row]), _mm512_store_ps(to + 256 + 16 * row, high[row]);
    }
    // A row's pair is one number of 32 bits, the same for all 16 columns
    template <int ROWS> static void products(float *to, const bf16 *left, int64_t stride, const bf16 *right) {
        __m512 rows[ROWS];
        for (int row = 0; row < ROWS; ++row) rows[row] = _mm512_load_ps(to + 16 * row);
        for (int pair = 0; pair < 16; ++pair) {
            const __m512i columns = _mm512_loadu_si512(right + 32 * pair);
            for (int row = 0; row < ROWS; ++row) {
                int32_t number;
                std::memcpy(&number, left + row * stride + 2 * pair, 4);
                rows[row] = _mm512_dpbf16_ps(rows[row], (__m512bh)_mm512_set1_epi32(number), (__m512bh)columns);
            }
        }
        for (int row = 0; row < ROWS; ++row) _mm512_store_ps(to + 16 * row, rows[row]);
    }
#else
    // ROWS rows, 16 columns: two registers of sums a row. Rows were widened before, columns are once for all rows.
    template <int ROWS> void rows_of_square(float *at, int64_t start, int half, const Run *runs, int64_t count, bool is_first) {
        float *to = at + (start / 16 * 2 + half) * 256 + start % 16 * 16;
        if (is_first) std::memset(to, 0, 64 * ROWS);
        const float *left = widened.data() + start * wide_K;
        for (const Run *run = runs; run < runs + count; left += 32 * run->steps, ++run) {
            const bf16 *right = half == 0 ? run->columns.low : run->columns.high;
            add_steps<ROWS>(to, left, wide_K, right, run->columns.step, run->steps - 1, 16);
            add_steps<ROWS>(to, left + 32 * (run->steps - 1), wide_K, right + (run->steps - 1) * run->columns.step, 0, 1, run->pairs);
        }
    }
    // All runs of so many rows as fp32, one row behind another
    void widen_rows(int64_t rows, const Run *runs, int64_t count) {
        wide_K = 0;
        for (const Run *run = runs; run < runs + count; ++run) wide_K += 32 * run->steps;
        make_room(widened, rows * wide_K);
        for (int64_t row = 0; row < rows; ++row) {
            float *to = widened.data() + row * wide_K;
            for (const Run *run = runs; run < runs + count; ++run) {
                const bf16 *left = run->rows.first + row / 16 * run->rows.second + row % 16 * (run->rows.bytes / 2);
                for (int64_t step = 0; step < run->steps; ++step, left += run->rows.step, to += 32)
                    for (int64_t k = 0; k < 32; k += W) luthier::store(to + k, luthier::load(left + k));
            }
        }
    }
    // To ROWS rows of 16 sums the products of `steps` times `pairs` pairs, 16 pairs apart in rows of fp32 `apart`, `step` numbers in columns
    template <int ROWS>
    static void add_steps(float *to, const float *left, int64_t apart, const bf16 *right, int64_t step, int64_t steps, int64_t pairs) {
        if (steps == 0 || pairs == 0) return;
        if constexpr (ROWS == 4) return add_four(to, left, apart, right, step, steps, pairs);
        const __m256 odd = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000u)));
        __m256 low[ROWS], high[ROWS];
        for (int row = 0; row < ROWS; ++row) low[row] = _mm256_load_ps(to + 16 * row), high[row] = _mm256_load_ps(to + 16 * row + 8);
        for (; steps > 0; --steps, left += 32, right += step)
            for (int64_t pair = 0; pair < pairs; ++pair) {
                const __m256i *columns = reinterpret_cast<const __m256i *>(right + 32 * pair);
                const __m256i b = _mm256_loadu_si256(columns), c = _mm256_loadu_si256(columns + 1);
                const __m256 b_even = _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)), c_even = _mm256_castsi256_ps(_mm256_slli_epi32(c, 16));
                const __m256 b_odd = _mm256_and_ps(_mm256_castsi256_ps(b), odd), c_odd = _mm256_and_ps(_mm256_castsi256_ps(c), odd);
                for (int row = 0; row < ROWS; ++row) {
                    const float *numbers = left + row * apart + 2 * pair;
                    const __m256 first = _mm256_broadcast_ss(numbers), second = _mm256_broadcast_ss(numbers + 1);
                    low[row] = _mm256_fmadd_ps(second, b_odd, _mm256_fmadd_ps(first, b_even, low[row]));
                    high[row] = _mm256_fmadd_ps(second, c_odd, _mm256_fmadd_ps(first, c_even, high[row]));
                }
            }
        for (int row = 0; row < ROWS; ++row) _mm256_store_ps(to + 16 * row, low[row]), _mm256_store_ps(to + 16 * row + 8, high[row]);
    }
    // The same for four rows: registers 0 to 7 are sums, 8 and 9 columns, 10 a row's number, 11 the mask. In words of assembler because what
    // compilers make of the above has 0.6 to 0.7 of the speed.
#define LUTHIER_ROW(WHERE, LOW, HIGH) \
    "vbroadcastss " WHERE ", %%ymm10\n\tvfmadd231ps %%ymm8, %%ymm10, %%ymm" LOW "\n\tvfmadd231ps %%ymm9, %%ymm10, %%ymm" HIGH "\n\t"
#define LUTHIER_ROWS(AT)                                                                              \
    LUTHIER_ROW(AT "(%[a])", "0", "1") LUTHIER_ROW(AT "(%[a],%[apart])", "2", "3")                     \
    LUTHIER_ROW(AT "(%[a],%[apart],2)", "4", "5") LUTHIER_ROW(AT "(%[a],%[three])", "6", "7")
    static void add_four(float *to, const float *a, int64_t apart, const bf16 *right, int64_t step, int64_t steps, int64_t pairs) {
        const int64_t a_skip = 4 * (32 - 2 * pairs), right_skip = 2 * (step - 32 * pairs);
        const uint32_t odd = 0xffff0000u;
        int64_t n;
        asm volatile(
            "vbroadcastss %[odd], %%ymm11\n\t"
            "vmovaps (%[to]), %%ymm0\n\tvmovaps 32(%[to]), %%ymm1\n\tvmovaps 64(%[to]), %%ymm2\n\tvmovaps 96(%[to]), %%ymm3\n\t"
            "vmovaps 128(%[to]), %%ymm4\n\tvmovaps 160(%[to]), %%ymm5\n\tvmovaps 192(%[to]), %%ymm6\n\tvmovaps 224(%[to]), %%ymm7\n\t"
            "2:\n\t"
            "mov %[pairs], %[n]\n\t"
            ".p2align 5\n\t"
            "1:\n\t"
            "vmovdqu (%[right]), %%ymm8\n\tvmovdqu 32(%[right]), %%ymm9\n\t"
            "vpslld $16, %%ymm8, %%ymm8\n\tvpslld $16, %%ymm9, %%ymm9\n\t" LUTHIER_ROWS("0")
            "vandps (%[right]), %%ymm11, %%ymm8\n\tvandps 32(%[right]), %%ymm11, %%ymm9\n\t" LUTHIER_ROWS("4")
            "add $8, %[a]\n\tadd $64, %[right]\n\t"
            "dec %[n]\n\tjnz 1b\n\t"
            "add %[a_skip], %[a]\n\tadd %[right_skip], %[right]\n\t"
            "dec %[steps]\n\tjnz 2b\n\t"
            "vmovaps %%ymm0, (%[to])\n\tvmovaps %%ymm1, 32(%[to])\n\tvmovaps %%ymm2, 64(%[to])\n\tvmovaps %%ymm3, 96(%[to])\n\t"
            "vmovaps %%ymm4, 128(%[to])\n\tvmovaps %%ymm5, 160(%[to])\n\tvmovaps %%ymm6, 192(%[to])\n\tvmovaps %%ymm7, 224(%[to])\n\t"
            : [a] "+r"(a), [right] "+r"(right), [steps] "+r"(steps), [n] "=&r"(n)
            : [to] "r"(to), [apart] "r"(4 * apart), [three] "r"(12 * apart), [a_skip] "rm"(a_skip), [right_skip] "rm"(right_skip),
              [pairs] "rm"(pairs), [odd] "m"(odd)
            : "memory", "cc", "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11");
    }
#undef LUTHIER_ROWS
#undef LUTHIER_ROW
    template <int ROWS> static void products(float *to, const bf16 *left, int64_t stride, const bf16 *right) {
        alignas(32) float numbers[16 * 32];
        for (int row = 0; row < ROWS; ++row)
            for (int64_t k = 0; k < 32; k += W) luthier::store(numbers + 32 * row + k, luthier::load(left + row * stride + k));
        for (int row = 0; row < ROWS; row += ROWS < 4 ? ROWS : 4)
            add_steps<ROWS < 4 ? ROWS : 4>(to + 16 * row, numbers + 32 * row, 32, right, 0, 1, 16);
    }
    std::vector<float> widened;
    int64_t wide_K = 0;
#endif
    alignas(64) float sums[6][256];
    const bf16 *factors[8];
    int64_t strides[8];
    int counts[8];
};
#endif

// The tiles of sums, 0 to 3
inline void zero_sums(Session &tiles) {
    written();
    tiles.zero<0>();
    tiles.zero<1>();
    tiles.zero<2>();
    tiles.zero<3>();
}

// Room for so many numbers, from a line of the cache on; it stays with the thread, and grows where it must. `File` says whose it is: one
// file's numbers must outlast its calls of another's functions. Throws std::bad_alloc.
template <typename File, typename T = bf16> T *room(int which, int64_t count) {
    static thread_local std::vector<T> rooms[12];
    make_room(rooms[which], count + 32);
    return reinterpret_cast<T *>((reinterpret_cast<uintptr_t>(rooms[which].data()) + 63) / 64 * 64);
}

}  // namespace luthier
#endif
