/* One pass over packed codes that finds the nearest bags of several searches; see scan.py.
 *
 * The codes of neighbouring bags are taken in blocks. A kernel writes the distances of a block to
 * one query and returns the least. The least distances of a search's queries add up to a bound:
 * only if it is below the worst result so far are the bags of the block looked at one by one. If a
 * search leaves out bags, its least distances are taken again, without theirs, before that. A block
 * stays in the cache until every search has seen it, so the codes are read from memory once.
 *
 * A result is a key, distance << BAG_BITS | bag, so that keys compare as (distance, bag) does.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    BLOCK = 256,        /* codes; a multiple of SOME */
    SOME = 16,          /* codes whose distances or marks are written together */
    BATCH = 32,         /* blocks that are fetched together, */
    BATCH_BYTES = 2048, /* up to about so much */
    PART = 768,         /* bytes of codes to fetch at once: of more, the last would wait */
    GROUP = 8,          /* small bags that are left out together; their mask is a word */
    SMALL = 32,         /* bags are small if they have fewer codes than this on average */
    BAG_BITS = 40,      /* of a key; */
    DISTANCE_BITS = 24  /* the rest */
};
#define INTERVAL ((size_t)256 << 20) /* bytes of codes between two checks for Ctrl-C */

#define INLINE static inline __attribute__((always_inline))

/* Writes the distances of n codes (at most BLOCK) to a query and returns the least. */
typedef uint32_t Kernel(const uint8_t *codes, size_t n, size_t n_bytes, const uint8_t *query,
                        uint32_t *distances);

typedef uint32_t Some __attribute__((vector_size(SOME * sizeof(uint32_t))));

INLINE size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* -- kernels ----------------------------------------------------------------------------------- */

INLINE uint64_t word(const uint8_t *bytes, size_t n_bytes) {
    uint64_t value = 0;
    memcpy(&value, bytes, n_bytes);
    return value;
}

INLINE uint32_t differences(const uint8_t *a, const uint8_t *b, size_t n_bytes) {
    uint32_t sum = 0;
    size_t at = 0;
    for (; at + 8 <= n_bytes; at += 8)
        sum += (uint32_t)__builtin_popcountll(word(a + at, 8) ^ word(b + at, 8));
    for (size_t part = 4; part; part /= 2)
        if (n_bytes & part) {
            sum += (uint32_t)__builtin_popcountll(word(a + at, part) ^ word(b + at, part));
            at += part;
        }
    return sum;
}

INLINE uint32_t least_by_words(const uint8_t *codes, size_t n, size_t n_bytes,
                               const uint8_t *query, uint32_t *distances) {
    uint32_t least = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        distances[i] = differences(codes + i * n_bytes, query, n_bytes);
        least = distances[i] < least ? distances[i] : least;
    }
    return least;
}

/* The compiler unrolls the loop over the words of common lengths. */
INLINE uint32_t least_of_words(const uint8_t *codes, size_t n, size_t n_bytes,
                               const uint8_t *query, uint32_t *distances) {
    switch (n_bytes) {
    case 6: return least_by_words(codes, n, 6, query, distances);
    case 8: return least_by_words(codes, n, 8, query, distances);
    case 16: return least_by_words(codes, n, 16, query, distances);
    default: return least_by_words(codes, n, n_bytes, query, distances);
    }
}

static uint32_t least_portable(const uint8_t *codes, size_t n, size_t n_bytes,
                               const uint8_t *query, uint32_t *distances) {
    return least_of_words(codes, n, n_bytes, query, distances);
}

#if defined(__x86_64__)

#define POPCNT __attribute__((target("popcnt")))

POPCNT static uint32_t least_popcnt(const uint8_t *codes, size_t n, size_t n_bytes,
                                    const uint8_t *query, uint32_t *distances) {
    return least_of_words(codes, n, n_bytes, query, distances);
}

#define AVX2 __attribute__((target("avx2,popcnt")))

AVX2 INLINE uint32_t lowest(__m128i four) {
    four = _mm_min_epu32(four, _mm_shuffle_epi32(four, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_min_epu32(four, _mm_shuffle_epi32(four, 0xb1)));
}

/* Codes of eight bytes: four at a time. For others, counting words one by one is as fast. */
AVX2 static uint32_t least_avx2(const uint8_t *codes, size_t n, size_t n_bytes,
                                const uint8_t *query, uint32_t *distances) {
    if (n_bytes != 8)
        return least_of_words(codes, n, n_bytes, query, distances);
    const __m256i wanted = _mm256_set1_epi64x((long long)word(query, 8));
    const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    const __m256i half = _mm256_set1_epi8(15);
    const __m256i bits = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, /* of 0 */
                                          0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4); /* to 15 */
    __m128i least = _mm_set1_epi32(-1);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(codes + 8 * i));
        x = _mm256_xor_si256(x, wanted);
        __m256i low = _mm256_shuffle_epi8(bits, _mm256_and_si256(x, half));
        __m256i high = _mm256_shuffle_epi8(bits, _mm256_and_si256(_mm256_srli_epi16(x, 4), half));
        x = _mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256());
        __m128i four = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(x, even));
        _mm_storeu_si128((__m128i *)(distances + i), four);
        least = _mm_min_epu32(least, four);
    }
    uint32_t rest = least_by_words(codes + 8 * i, n - i, 8, query, distances + i);
    return (uint32_t)smaller(lowest(least), rest);
}

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vbmi,avx512vpopcntdq")))

/* A mask of the first n of 64 bytes or codes. */
INLINE uint64_t low_bits(size_t n) { return n < 64 ? ((uint64_t)1 << n) - 1 : UINT64_MAX; }

/* The differing bits of eight codes of up to eight bytes, each moved to a word of its own. */
AVX512 INLINE __m512i eight_differences(const uint8_t *codes, size_t n, size_t n_bytes,
                                        __m512i query) {
    const uint64_t each = 0x0101010101010101;
    const __m512i words = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i places = _mm512_add_epi64(
        _mm512_mullo_epi64(words, _mm512_set1_epi64((long long)(each * n_bytes))),
        _mm512_set1_epi64(0x0706050403020100));
    __m512i x = _mm512_maskz_loadu_epi8(low_bits(n * n_bytes), codes);
    if (n_bytes < 8)
        x = _mm512_maskz_permutexvar_epi8(each * low_bits(n_bytes), places, x);
    return _mm512_popcnt_epi64(_mm512_xor_si512(x, query));
}

/* Writes the distances of n codes, of SOME at most, and returns them, the others as greatest. */
AVX512 INLINE __m512i some_short(const uint8_t *codes, size_t n, size_t n_bytes, __m512i query,
                                 uint32_t *distances) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    size_t first = smaller(n, 8);
    __m512i x = eight_differences(codes, first, n_bytes, query);
    __m512i y = eight_differences(codes + first * n_bytes, n - first, n_bytes, query);
    x = _mm512_permutex2var_epi32(x, even, y);
    _mm512_storeu_si512(distances, x);
    return _mm512_mask_mov_epi32(_mm512_set1_epi32(-1), (__mmask16)low_bits(n), x);
}

AVX512 INLINE uint32_t least_short(const uint8_t *codes, size_t n, size_t n_bytes,
                                   const uint8_t *query, uint32_t *distances) {
    const __m512i wanted = _mm512_set1_epi64((long long)word(query, n_bytes));
    __m512i least = _mm512_set1_epi32(-1);
    size_t i = 0;
    for (; i + SOME <= n; i += SOME)
        least = _mm512_min_epu32(
            least, some_short(codes + i * n_bytes, SOME, n_bytes, wanted, distances + i));
    if (i < n)
        least = _mm512_min_epu32(
            least, some_short(codes + i * n_bytes, n - i, n_bytes, wanted, distances + i));
    return _mm512_reduce_min_epu32(least);
}

/* The differing bits of eight parts of a code, which are to be added up. */
AVX512 INLINE __m512i differences_avx512(const uint8_t *a, const uint8_t *b, size_t n_bytes) {
    __m512i sums = _mm512_setzero_si512();
    for (size_t at = 0; at < n_bytes; at += 64) {
        __mmask64 read = low_bits(n_bytes - at);
        __m512i x = _mm512_xor_si512(_mm512_maskz_loadu_epi8(read, a + at),
                                     _mm512_maskz_loadu_epi8(read, b + at));
        sums = _mm512_add_epi64(sums, _mm512_popcnt_epi64(x));
    }
    return sums;
}

/* Longer codes: the sums of four are packed into one word each, so that they are added at once. */
AVX512 INLINE uint32_t least_long(const uint8_t *codes, size_t n, size_t n_bytes,
                                  const uint8_t *query, uint32_t *distances) {
    __m128i least4 = _mm_set1_epi32(-1);
    uint32_t least = UINT32_MAX;
    size_t i = 0;
    for (; i + 4 <= n && 8 * n_bytes <= UINT16_MAX; i += 4) {
        const uint8_t *code = codes + i * n_bytes;
        __m512i sums = differences_avx512(code, query, n_bytes);
        for (unsigned k = 1; k < 4; k++)
            sums = _mm512_add_epi64(
                sums,
                _mm512_slli_epi64(differences_avx512(code + k * n_bytes, query, n_bytes), 16 * k));
        __m128i four = _mm_cvtepu16_epi32(_mm_cvtsi64_si128(_mm512_reduce_add_epi64(sums)));
        _mm_storeu_si128((__m128i *)(distances + i), four);
        least4 = _mm_min_epu32(least4, four);
    }
    least = lowest(least4);
    for (; i < n; i++) {
        __m512i sums = differences_avx512(codes + i * n_bytes, query, n_bytes);
        distances[i] = (uint32_t)_mm512_reduce_add_epi64(sums);
        least = distances[i] < least ? distances[i] : least;
    }
    return least;
}

AVX512 static uint32_t least_avx512(const uint8_t *codes, size_t n, size_t n_bytes,
                                    const uint8_t *query, uint32_t *distances) {
    if (n_bytes == 8) /* compiled without moving them */
        return least_short(codes, n, 8, query, distances);
    if (n_bytes < 8)
        return least_short(codes, n, n_bytes, query, distances);
    if (n_bytes <= 64) /* compiled without the loop over the parts of a code */
        return least_long(codes, n, n_bytes, query, distances);
    return least_long(codes, n, n_bytes, query, distances);
}

#endif

/* -- the pass ---------------------------------------------------------------------------------- */

typedef struct {
    Py_buffer queries, mask, found; /* (Q, B) uint8; (N,) bool or NULL; (top,) uint64 */
    size_t n_queries, top;
} Search;

typedef struct Pass Pass;
typedef struct Block Block;

/* Offers the bags of a block to a search, if one of them can be better than its worst result. */
typedef void Searcher(Pass *pass, Search *search, const Block *block);

struct Pass {
    Searcher *search_block;
    Py_buffer codes, offsets; /* (M, B) uint8; (N + 1,) int64, or NULL: each code is a bag */
    Py_buffer mask;           /* (N,) bool, the bags that any search wants; or NULL */
    size_t n_codes, n_bytes, n_bags;
    Search *searches;
    Py_ssize_t n_searches;
    uint32_t *distances; /* (most queries of a search, 1 + BLOCK): the least, then all */
    size_t bag, code;    /* the next to be taken */
    const uint8_t *ahead, *ahead_end; /* codes that are to be fetched */
    uint32_t unwanted[BLOCK + SOME];  /* UINT32_MAX for codes that a search leaves out */
};

/* Neighbouring bags with at most BLOCK codes, or a single larger bag. */
struct Block {
    size_t first_bag, end_bag, first_code, n_codes;
};

/* Blocks that are fetched from memory while the last ones are searched. */
typedef struct {
    Block blocks[BATCH];
    size_t n;
} Batch;

INLINE size_t end_of(const int64_t *offsets, size_t bag) {
    return offsets ? (size_t)offsets[bag + 1] : bag + 1;
}

INLINE int wants(const Py_buffer *mask, size_t bag) {
    return !mask->buf || ((const uint8_t *)mask->buf)[bag];
}

/* Whether a search wants a bag, or small ones beside it: a processor that cannot guess the next bag
 * of a random filter waits longer than it takes to search a few others. */
INLINE int wants_group(const Pass *pass, size_t bag) {
    const uint8_t *mask = pass->mask.buf;
    size_t first = bag / GROUP * GROUP;
    if (!mask || pass->n_codes / SMALL >= pass->n_bags || first + GROUP > pass->n_bags)
        return wants(&pass->mask, bag);
    return word(mask + first, GROUP) != 0;
}

/* Takes the next bags that a search wants; n_codes is 0 after the last. Returns 0 if the offsets
 * do not divide the codes. */
static int take_block(Pass *pass, Block *block) {
    const int64_t *offsets = pass->offsets.buf;
    const size_t n_bags = pass->n_bags, n_codes = pass->n_codes;
    size_t bag = pass->bag, code = pass->code, end;
    if (!offsets && !pass->mask.buf) { /* all at once */
        size_t n = smaller(n_codes - code, BLOCK);
        *block = (Block){bag, bag + n, code, n};
        pass->bag = pass->code = code + n;
        return 1;
    }
    for (; bag < n_bags; bag++, code = end) { /* those before the block */
        end = end_of(offsets, bag);
        if (end < code || end > n_codes)
            return 0;
        if (end > code && wants_group(pass, bag))
            break;
    }
    size_t first_bag = bag, first = code;
    for (; bag < n_bags && wants_group(pass, bag); bag++, code = end) {
        end = end_of(offsets, bag);
        if (end < code || end > n_codes)
            return 0;
        if (code > first && end - first > BLOCK)
            break;
    }
    *block = (Block){first_bag, bag, first, code - first};
    pass->bag = bag;
    pass->code = code;
    return 1;
}

/* Takes the next blocks. */
static int take_batch(Pass *pass, Batch *batch) {
    size_t n_bytes = 0;
    for (batch->n = 0; batch->n < BATCH && n_bytes < BATCH_BYTES; batch->n++) {
        Block *block = &batch->blocks[batch->n];
        if (!take_block(pass, block))
            return 0;
        if (!block->n_codes)
            break;
        n_bytes += block->n_codes * pass->n_bytes;
    }
    return 1;
}

/* Chooses the block, if there is one, whose codes are fetched next. */
INLINE void aim(Pass *pass, const Batch *batch, size_t n) {
    pass->ahead = pass->ahead_end = pass->codes.buf;
    if (n < batch->n) {
        const Block *block = &batch->blocks[n];
        pass->ahead += block->first_code * pass->n_bytes;
        pass->ahead_end = pass->ahead + smaller(block->n_codes, BLOCK) * pass->n_bytes;
    }
}

/* Fetches more of these codes, without waiting for them: memory stays busy if this is called often,
 * for a few codes each time. */
INLINE void fetch(Pass *pass, size_t n_bytes) {
    const uint8_t *at = pass->ahead, *end = at + smaller(n_bytes, (size_t)(pass->ahead_end - at));
    for (; at < end; at += 64)
        __builtin_prefetch(at);
    pass->ahead = end;
}

/* Replaces the worst result, at the root of a heap, if this one is better. */
static void offer(Search *search, uint64_t distance, size_t bag) {
    uint64_t *found = search->found.buf, key = distance << BAG_BITS | bag;
    size_t place = 0;
    if (key >= found[0])
        return;
    for (size_t child; (child = 2 * place + 1) < search->top; place = child) {
        if (child + 1 < search->top && found[child + 1] > found[child])
            child++;
        if (found[child] <= key)
            break;
        found[place] = found[child];
    }
    found[place] = key;
}

INLINE uint32_t least_of(const uint32_t *distances, size_t n) {
    uint32_t least = UINT32_MAX;
    for (size_t i = 0; i < n; i++)
        least = distances[i] < least ? distances[i] : least;
    return least;
}

INLINE uint32_t least_wanted(const uint32_t *distances, const uint32_t *unwanted, size_t n) {
    uint32_t least = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        uint32_t distance = distances[i] | unwanted[i];
        least = distance < least ? distance : least;
    }
    return least;
}

/* The end of a bag in a block. Offsets in shared memory may have changed since they were read. */
INLINE size_t end_in(const Block *block, const int64_t *offsets, size_t bag) {
    return smaller(end_of(offsets, bag) - block->first_code, block->n_codes);
}

/* Marks the codes of the bags that a search leaves out, without a guess at the next one. */
INLINE void mark_unwanted(const Block *block, const int64_t *offsets, const uint8_t *mask,
                          uint32_t *unwanted) {
    const Block here = *block; /* cannot change while marks are written */
    size_t start = 0;
    for (size_t bag = here.first_bag; bag < here.end_bag; bag++) {
        size_t end = end_in(&here, offsets, bag);
        const Some marks = (Some){0} - (uint32_t)!mask[bag];
        for (size_t i = start; i < end; i += SOME) /* a few too many, overwritten by the next bag */
            memcpy(unwanted + i, &marks, sizeof marks);
        start = end;
    }
}

INLINE void search_block(Pass *pass, Search *search, const Block *block, Kernel *kernel) {
    const uint8_t *codes = (const uint8_t *)pass->codes.buf + block->first_code * pass->n_bytes;
    const uint8_t *queries = search->queries.buf;
    const int64_t *offsets = pass->offsets.buf;
    const uint64_t *worst = search->found.buf;
    uint64_t bound = 0;
    for (size_t q = 0; q < search->n_queries; q++) {
        uint32_t least = UINT32_MAX, *distances = pass->distances + q * (1 + BLOCK);
        fetch(pass, PART);
        for (size_t i = 0; i < block->n_codes; i += BLOCK)
            least = (uint32_t)smaller(
                least, kernel(codes + i * pass->n_bytes, smaller(block->n_codes - i, BLOCK),
                              pass->n_bytes, queries + q * pass->n_bytes, distances + 1));
        bound += distances[0] = least;
        if ((bound << BAG_BITS | block->first_bag) >= *worst)
            return;
    }
    if (block->n_codes > BLOCK) { /* a single bag */
        if (wants(&search->mask, block->first_bag))
            offer(search, bound, block->first_bag);
        return;
    }
    if (search->mask.buf) {
        fetch(pass, PART);
        mark_unwanted(block, offsets, search->mask.buf, pass->unwanted);
        bound = 0;
        for (size_t q = 0; q < search->n_queries; q++) {
            uint32_t *distances = pass->distances + q * (1 + BLOCK);
            distances[0] = least_wanted(distances + 1, pass->unwanted, block->n_codes);
            if (distances[0] == UINT32_MAX) /* it wants none of them */
                return;
            bound += distances[0];
        }
        if ((bound << BAG_BITS | block->first_bag) >= *worst)
            return;
    }
    size_t start = 0;
    for (size_t bag = block->first_bag; bag < block->end_bag; bag++) {
        size_t end = end_in(block, offsets, bag);
        if (end > start && wants(&search->mask, bag)) {
            uint64_t sum = bound;
            for (size_t q = 0; q < search->n_queries && (sum << BAG_BITS | bag) < *worst; q++) {
                const uint32_t *distances = pass->distances + q * (1 + BLOCK);
                sum += least_of(distances + 1 + start, end - start) - distances[0];
            }
            offer(search, sum, bag);
        }
        start = end;
    }
}

/* The search of a block is compiled for each set of instructions. */

static void search_portable(Pass *pass, Search *search, const Block *block) {
    search_block(pass, search, block, least_portable);
}

#if defined(__x86_64__)

POPCNT static void search_popcnt(Pass *pass, Search *search, const Block *block) {
    search_block(pass, search, block, least_popcnt);
}

AVX2 static void search_avx2(Pass *pass, Search *search, const Block *block) {
    search_block(pass, search, block, least_avx2);
}

AVX512 static void search_avx512(Pass *pass, Search *search, const Block *block) {
    search_block(pass, search, block, least_avx512);
}

#endif

/* What searches blocks by a name, or NULL if this machine cannot run it. */
static Searcher *searcher_of(const char *name) {
    if (!strcmp(name, "portable"))
        return search_portable;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!strcmp(name, "popcnt") && __builtin_cpu_supports("popcnt"))
        return search_popcnt;
    if (!strcmp(name, "avx2") && __builtin_cpu_supports("avx2") &&
        __builtin_cpu_supports("popcnt"))
        return search_avx2;
    if (!strcmp(name, "avx512") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vpopcntdq"))
        return search_avx512;
#endif
    return NULL;
}

static const char *const NAMES[] = {"avx512", "avx2", "popcnt", "portable"}; /* fastest first */

/* Searches the next INTERVAL bytes of codes. Returns 0 if the offsets do not divide the codes. */
static int advance(Pass *pass) {
    Batch batches[2], *batch = batches, *next = batches + 1, *other;
    if (!take_batch(pass, batch))
        return 0;
    for (size_t n_bytes = 0; batch->n; other = batch, batch = next, next = other) {
        next->n = 0;
        if (n_bytes < INTERVAL && !take_batch(pass, next))
            return 0;
        for (size_t n = 0; n < batch->n || n < next->n; n++) {
            aim(pass, next, n);
            if (n < batch->n) {
                for (Py_ssize_t s = 0; s < pass->n_searches; s++)
                    pass->search_block(pass, &pass->searches[s], &batch->blocks[n]);
                n_bytes += batch->blocks[n].n_codes * pass->n_bytes;
            }
            fetch(pass, SIZE_MAX);
        }
    }
    return pass->bag < pass->n_bags || pass->code == pass->n_codes;
}

/* -- Python ------------------------------------------------------------------------------------ */

static int refuse(const char *what) {
    PyErr_SetString(PyExc_ValueError, what);
    return 0;
}

static int take_buffer(PyObject *object, Py_buffer *buffer, int flags) {
    return object == Py_None || !PyObject_GetBuffer(object, buffer, flags);
}

static int take_search(const Pass *pass, PyObject *item, Search *search) {
    PyObject *queries, *mask, *found;
    if (!PyTuple_Check(item))
        return refuse("a search must be a tuple");
    if (!PyArg_ParseTuple(item, "OOO", &queries, &mask, &found) ||
        !take_buffer(queries, &search->queries, PyBUF_SIMPLE) ||
        !take_buffer(mask, &search->mask, PyBUF_SIMPLE) ||
        !take_buffer(found, &search->found, PyBUF_WRITABLE))
        return 0;
    search->n_queries = (size_t)search->queries.len / pass->n_bytes;
    search->top = (size_t)search->found.len / sizeof(uint64_t);
    if (!search->n_queries || (size_t)search->queries.len % pass->n_bytes)
        return refuse("queries must be one or more codes");
    if ((size_t)search->queries.len >> (DISTANCE_BITS - 3))
        return refuse("queries must have less than 2^24 bits in all");
    if (mask != Py_None && (size_t)search->mask.len != pass->n_bags)
        return refuse("mask must be (N,) bool");
    if (!search->top || (size_t)search->found.len % sizeof(uint64_t) ||
        (uintptr_t)search->found.buf % sizeof(uint64_t))
        return refuse("found must be (top,) uint64, top at least 1");
    return 1;
}

static int take_pass(PyObject *args, Pass *pass) {
    const char *name;
    PyObject *codes, *offsets, *mask, *searches;
    Py_ssize_t n_bytes;
    size_t most = 0;
    if (!PyArg_ParseTuple(args, "sOnOOO!", &name, &codes, &n_bytes, &offsets, &mask,
                          &PyTuple_Type, &searches) ||
        !take_buffer(codes, &pass->codes, PyBUF_SIMPLE) ||
        !take_buffer(offsets, &pass->offsets, PyBUF_SIMPLE) ||
        !take_buffer(mask, &pass->mask, PyBUF_SIMPLE))
        return 0;
    if (!(pass->search_block = searcher_of(name)))
        return refuse("this machine does not have these instructions");
    if (n_bytes < 1 || pass->codes.len % n_bytes)
        return refuse("codes must be (M, B) uint8, B at least 1");
    pass->n_bytes = (size_t)n_bytes;
    pass->n_bags = pass->n_codes = (size_t)(pass->codes.len / n_bytes);
    if (offsets != Py_None) {
        const int64_t *values = pass->offsets.buf;
        if (!pass->offsets.len || (size_t)pass->offsets.len % sizeof *values ||
            (uintptr_t)values % sizeof *values)
            return refuse("offsets must be (N + 1,) int64");
        if (values[0])
            return refuse("offsets must begin with 0");
        pass->n_bags = (size_t)pass->offsets.len / sizeof *values - 1;
    }
    if (mask != Py_None && (size_t)pass->mask.len != pass->n_bags)
        return refuse("mask must be (N,) bool");
    if (pass->n_bags >> BAG_BITS)
        return refuse("there must be less than 2^40 bags");
    Py_ssize_t n_searches = PyTuple_Size(searches);
    pass->searches = PyMem_Calloc((size_t)n_searches + 1, sizeof(Search));
    if (!pass->searches)
        return PyErr_NoMemory() != NULL;
    for (; pass->n_searches < n_searches; pass->n_searches++) {
        Search *search = &pass->searches[pass->n_searches];
        if (!take_search(pass, PyTuple_GetItem(searches, pass->n_searches), search)) {
            pass->n_searches++; /* so that its buffers are released */
            return 0;
        }
        most = search->n_queries > most ? search->n_queries : most;
    }
    pass->distances = PyMem_Calloc(most * (1 + BLOCK) + 1, sizeof *pass->distances);
    return pass->distances || PyErr_NoMemory() != NULL;
}

static void run(Pass *pass) {
    int fits = 1;
    do {
        Py_BEGIN_ALLOW_THREADS
        fits = advance(pass);
        Py_END_ALLOW_THREADS
        if (!fits)
            PyErr_Format(PyExc_ValueError, "offsets must rise from 0 to %zu, the number of codes",
                         pass->n_codes);
    } while (fits && pass->bag < pass->n_bags && !PyErr_CheckSignals());
}

static PyObject *nearest(PyObject *Py_UNUSED(module), PyObject *args) {
    Pass pass = {0};
    if (take_pass(args, &pass))
        run(&pass);
    for (Py_ssize_t s = 0; s < pass.n_searches; s++) {
        PyBuffer_Release(&pass.searches[s].queries);
        PyBuffer_Release(&pass.searches[s].mask);
        PyBuffer_Release(&pass.searches[s].found);
    }
    PyBuffer_Release(&pass.codes);
    PyBuffer_Release(&pass.offsets);
    PyBuffer_Release(&pass.mask);
    PyMem_Free(pass.searches);
    PyMem_Free(pass.distances);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"nearest", nearest, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};

static int fill(PyObject *module) {
    PyObject *names = PyList_New(0);
    for (size_t n = 0; names && n < sizeof NAMES / sizeof *NAMES; n++) {
        PyObject *name = searcher_of(NAMES[n]) ? PyUnicode_FromString(NAMES[n]) : NULL;
        if (name && PyList_Append(names, name))
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    int failed = !names || PyModule_AddObjectRef(module, "INSTRUCTIONS", names);
    Py_XDECREF(names);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)fill}, {0, NULL}};

static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT,
                                        .m_name = "regionhash.search._scan",
                                        .m_methods = methods,
                                        .m_slots = slots};

PyMODINIT_FUNC PyInit__scan(void) { return PyModuleDef_Init(&definition); }
