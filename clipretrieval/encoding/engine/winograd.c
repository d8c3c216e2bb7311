/* 3×3 convolutions of stride 1 and padding 1 by Winograd's minimal filtering: F(2×2, 3×3) in bf16, here, and
 * F(4×4, 3×3) in float32, in winograd_fp32.h.
 *
 * Lavin and Gray 2016, "Fast algorithms for convolutional neural networks", arXiv:1509.09308, section 4.1:
 *     Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A
 * A tile of 2×2 outputs takes 16 products a pair of channels where the plain sum takes 36. Over all tiles and
 * channels the products are 16 matrix products, here of bf16 with sums in float32 (AVX512-BF16).
 *
 * Memory: x is (n, height, width, in) and y (n, height, width, out), or with `pool`, the mean of 2×2 outputs,
 * (n, height / 2, width / 2, out), both bf16 or both float32; bias is float32 (out). The weight is of the type of
 * x, as winograd.py packs it: in bf16 (out / lanes, 16, in / 2, lanes, 2) with lanes 64 or 32, in float32
 * (out / 16, 36, in, 16).
 */
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define INLINE static inline __attribute__((always_inline)) AVX512
#define UNROLL _Pragma("GCC unroll 16")

/* Of transformed inputs, and of products, that a block of tiles may take: both stay in a core's L2. With many
 * channels the weights are larger than that, and more tiles share what is loaded of them. */
enum { BLOCK_BYTES = 400 * 1024, FP32_BLOCK_BYTES = 200 * 1024, FP32_LEAST_TILES = 28, LINE = 64 };
/* A thread takes some 40 µs to start, in which another makes a few million products. */
enum { MOST_THREADS = 16, PRODUCTS_A_THREAD = 16 << 20 };

enum { DONE, NO_INSTRUCTIONS, NO_MEMORY, BAD_SIZES };

typedef uint16_t bf16;

typedef struct {
    const void *x, *weight;
    const float *bias;
    void *y;
    int64_t n, height, width, in, out;
    int relu, pool;
    int tile, size; /* side of a tile's outputs; bytes of a number in x and y */
} Convolution;

typedef int Kernel(const Convolution *convolution, int64_t first, int64_t last);

typedef struct {
    const Convolution *convolution;
    Kernel *kernel;
    int64_t first, last;
    int failed;
} Range;

static int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The caller's thread keeps its scratch memory: fresh pages would cost as much as the transforms. */
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;
static int scratch_works;

static void make_scratch_key(void) { scratch_works = pthread_key_create(&scratch_key, free) == 0; }

static void *scratch(size_t size) {
    pthread_once(&scratch_once, make_scratch_key);
    if (!scratch_works) return NULL;
    size_t *kept = pthread_getspecific(scratch_key);
    if (kept == NULL || *kept < size) {
        free(kept);
        kept = aligned_alloc(LINE, (size_t)rounded_up((int64_t)size, LINE) + LINE);
        if (pthread_setspecific(scratch_key, kept) != 0) {
            free(kept);
            kept = NULL;
        }
        if (kept == NULL) return NULL;
        *kept = size;
    }
    return (char *)kept + LINE;
}

typedef struct {
    int64_t n, y, x;
} Place;

static Place place_of(const Convolution *c, int64_t tile) {
    int64_t across = (c->width + c->tile - 1) / c->tile, down = (c->height + c->tile - 1) / c->tile;
    return (Place){tile / across / down, tile / across % down * c->tile, tile % across * c->tile};
}

static Place next_place(const Convolution *c, Place at) {
    at.x += c->tile;
    if (at.x < c->width) return at;
    at.x = 0, at.y += c->tile;
    if (at.y < c->height) return at;
    at.y = 0, at.n++;
    return at;
}

/* The inputs of a tile's outputs and one pixel around them; `zeros` are those outside. */
static void find_pixels(const Convolution *c, Place at, const void *zeros, const void **pixels) {
    int inside = at.y > 0 && at.x > 0 && at.y + c->tile < c->height && at.x + c->tile < c->width;
    int64_t step = c->in * c->size, row = c->width * step;
    intptr_t corner = (intptr_t)c->x + (at.n * c->height + at.y - 1) * row + (at.x - 1) * step;
    for (int64_t i = 0, y = at.y - 1; y <= at.y + c->tile; i++, y++)
        for (int64_t j = 0, x = at.x - 1; x <= at.x + c->tile; j++, x++) {
            int found = inside || (y >= 0 && y < c->height && x >= 0 && x < c->width);
            *pixels++ = found ? (const void *)(corner + i * row + j * step) : zeros;
        }
}

/* Where a tile's outputs go: how many columns and rows it has, and the steps between them. */
typedef struct {
    void *y;
    int64_t right, below;
    int columns, rows;
} Outputs;

static Outputs find_outputs(const Convolution *c, Place at) {
    int by = c->pool ? 2 : 1;
    int64_t pixel = (at.n * (c->height / by) + at.y / by) * (c->width / by) + at.x / by;
    int columns = (int)least(c->tile, c->width - at.x) / by, rows = (int)least(c->tile, c->height - at.y) / by;
    return (Outputs){(char *)c->y + pixel * c->out * c->size, c->out, c->width / by * c->out, columns, rows};
}

/* bf16 is the upper half of a float: of 32 channels, the 16 even ones and the 16 odd ones. */
INLINE __m512 even(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
INLINE __m512 odd(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000u)));
}

/* Bᵀ d B of 4×4 pixels, 16 channels at a time. */
INLINE void transform_pixels(const __m512 d[16], __m512 v[16]) {
    __m512 t[16];
    UNROLL for (int j = 0; j < 4; j++) {
        t[j] = d[j] - d[8 + j];
        t[4 + j] = d[4 + j] + d[8 + j];
        t[8 + j] = d[8 + j] - d[4 + j];
        t[12 + j] = d[4 + j] - d[12 + j];
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        v[i] = t[i] - t[i + 2];
        v[i + 1] = t[i + 1] + t[i + 2];
        v[i + 2] = t[i + 2] - t[i + 1];
        v[i + 3] = t[i + 1] - t[i + 3];
    }
}

/* One tile's 16 transformed pixels, `stride` apart; each 32 channels in the order even ones, odd ones. */
static AVX512 void transform_tile(const void *const pixels[16], bf16 *v, int64_t stride, int64_t channels) {
    for (int64_t c = 0; c < channels; c += 32) {
        __m512i pairs[16];
        __m512 d[16], evens[16], odds[16];
        UNROLL for (int i = 0; i < 16; i++) pairs[i] = _mm512_loadu_si512((const bf16 *)pixels[i] + c);
        UNROLL for (int i = 0; i < 16; i++) d[i] = even(pairs[i]);
        transform_pixels(d, evens);
        UNROLL for (int i = 0; i < 16; i++) d[i] = odd(pairs[i]);
        transform_pixels(d, odds);
        UNROLL for (int i = 0; i < 16; i++)
            _mm512_store_si512(v + i * stride + c, (__m512i)_mm512_cvtne2ps_pbh(odds[i], evens[i]));
    }
}

/* m (ROWS, 16·COLUMNS) = v (ROWS, channels) · u (channels / 2, 16·COLUMNS, 2), all sums in registers. */
#define MATRIX_PRODUCT(NAME, ROWS, COLUMNS)                                                             \
    INLINE void NAME(const bf16 *v, const bf16 *u, float *m, int64_t channels) {                       \
        __m512 sums[ROWS][COLUMNS];                                                                     \
        UNROLL for (int r = 0; r < ROWS; r++)                                                           \
            UNROLL for (int b = 0; b < COLUMNS; b++) sums[r][b] = _mm512_setzero_ps();                  \
        for (int64_t k = 0; k < channels; k += 2) {                                                     \
            __m512i weights[COLUMNS];                                                                   \
            UNROLL for (int b = 0; b < COLUMNS; b++)                                                    \
                weights[b] = _mm512_loadu_si512(u + (k * COLUMNS + 2 * b) * 16);                        \
            UNROLL for (int r = 0; r < ROWS; r++) {                                                     \
                int32_t pair;                                                                           \
                memcpy(&pair, v + r * channels + k, sizeof pair);                                       \
                __m512i pairs = _mm512_set1_epi32(pair);                                                \
                UNROLL for (int b = 0; b < COLUMNS; b++)                                                \
                    sums[r][b] = _mm512_dpbf16_ps(sums[r][b], (__m512bh)weights[b], (__m512bh)pairs);   \
            }                                                                                           \
        }                                                                                               \
        UNROLL for (int r = 0; r < ROWS; r++)                                                           \
            UNROLL for (int b = 0; b < COLUMNS; b++)                                                    \
                _mm512_store_ps(m + (r * COLUMNS + b) * 16, sums[r][b]);                                \
    }
/* 24 of the 32 registers hold sums. */
MATRIX_PRODUCT(product_of_6_by_64, 6, 4)
MATRIX_PRODUCT(product_of_12_by_32, 12, 2)

INLINE void store_outputs(bf16 *y, __m512 sums) {
    _mm256_storeu_si256((__m256i *)y, (__m256i)_mm512_cvtneps_pbh(sums));
}

/* Aᵀ m A plus the bias: a tile's 2×2 outputs, or their mean. */
static AVX512 void finish_tile(const float *m, int64_t stride, int lanes, const float *bias, Outputs to, int relu,
                               int pool) {
    for (int o = 0; o < lanes; o += 16) {
        __m512 t[8], y[4], b = _mm512_loadu_ps(bias + o);
        UNROLL for (int j = 0; j < 4; j++) {
            __m512 first = _mm512_load_ps(m + j * stride + o), second = _mm512_load_ps(m + (4 + j) * stride + o);
            __m512 third = _mm512_load_ps(m + (8 + j) * stride + o), last = _mm512_load_ps(m + (12 + j) * stride + o);
            t[j] = first + second + third;
            t[4 + j] = second - third - last;
        }
        UNROLL for (int i = 0; i < 2; i++) {
            const __m512 *s = t + 4 * i;
            y[2 * i] = s[0] + s[1] + s[2] + b;
            y[2 * i + 1] = s[1] - s[2] - s[3] + b;
        }
        if (relu) UNROLL for (int i = 0; i < 4; i++) y[i] = _mm512_max_ps(_mm512_setzero_ps(), y[i]); /* keeps NaN */
        bf16 *out = (bf16 *)to.y + o;
        if (pool) {
            if (to.columns == 1 && to.rows == 1)
                store_outputs(out, (y[0] + y[1] + y[2] + y[3]) * _mm512_set1_ps(0.25f));
            continue;
        }
        store_outputs(out, y[0]);
        if (to.columns > 1) store_outputs(out + to.right, y[1]);
        if (to.rows > 1) store_outputs(out + to.below, y[2]);
        if (to.columns > 1 && to.rows > 1) store_outputs(out + to.below + to.right, y[3]);
    }
}

static AVX512 int convolve_tiles_bf16(const Convolution *c, int64_t first, int64_t last) {
    const int lanes = c->out % 64 ? 32 : 64, group = lanes == 64 ? 6 : 12;
    int64_t fitting = least(BLOCK_BYTES / (16 * 2 * c->in), BLOCK_BYTES / (16 * 4 * lanes));
    if (fitting < group) fitting = group;
    int64_t blocks = (last - first + fitting - 1) / fitting;
    int64_t block = rounded_up((last - first + blocks - 1) / blocks, group);
    /* One cache line more, lest the 16 planes fall into the same set of the cache. */
    int64_t v_stride = block * c->in + LINE / 2, m_stride = block * lanes + LINE / 4;
    bf16 *v = scratch((size_t)(16 * (2 * v_stride + 4 * m_stride) + 2 * c->in));
    if (v == NULL) return NO_MEMORY;
    float *m = (float *)(v + 16 * v_stride);
    bf16 *zeros = (bf16 *)(m + 16 * m_stride);
    memset(zeros, 0, (size_t)(2 * c->in));
    for (int64_t start = first; start < last; start += block) {
        int64_t here = least(block, last - start);
        Place at = place_of(c, start);
        for (int64_t t = 0; t < here; t++, at = next_place(c, at)) {
            const void *pixels[16];
            find_pixels(c, at, zeros, pixels);
            transform_tile(pixels, v + t * c->in, v_stride, c->in);
        }
        /* Rows that fill up the last group are multiplied too. */
        size_t missing = (size_t)(2 * c->in * (rounded_up(here, group) - here));
        for (int64_t p = 0; p < 16; p++) memset(v + p * v_stride + here * c->in, 0, missing);
        for (int64_t o = 0; o < c->out; o += lanes) {
            for (int64_t p = 0; p < 16; p++) {
                const bf16 *u = (const bf16 *)c->weight + (o * 16 + p * lanes) * c->in;
                for (int64_t t = 0; t < here; t += group) {
                    const bf16 *rows = v + p * v_stride + t * c->in;
                    float *products = m + p * m_stride + t * lanes;
                    if (lanes == 64) product_of_6_by_64(rows, u, products, c->in);
                    else product_of_12_by_32(rows, u, products, c->in);
                }
            }
            at = place_of(c, start);
            for (int64_t t = 0; t < here; t++, at = next_place(c, at)) {
                Outputs to = find_outputs(c, at);
                to.y = (bf16 *)to.y + o;
                finish_tile(m + t * lanes, m_stride, lanes, c->bias + o, to, c->relu, c->pool);
            }
        }
    }
    return DONE;
}

/* As in winograd.py. */
#define A 0.625f
#define B 1.5f
#define LANES 8
#include "winograd_fp32.h"
#define LANES 16
#include "winograd_fp32.h"

static void *run_range(void *given) {
    Range *range = given;
    range->failed = range->kernel(range->convolution, range->first, range->last);
    return NULL;
}

/* What winograd.py calls them. */
enum { BF16_AVX512, FP32_AVX2, FP32_AVX512 };

int clipretrieval_winograd_runs(int kernel) {
    if (kernel == BF16_AVX512) return __builtin_cpu_supports("avx512bf16") != 0;
    if (kernel == FP32_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return kernel == FP32_AVX512 && __builtin_cpu_supports("avx512f");
}

/* The number in the name goes up with every change of the arguments or of the weight's layout. */
int clipretrieval_winograd_2(int kernel, const void *x, const void *weight, const void *bias, void *y, int64_t n,
                             int64_t height, int64_t width, int64_t in, int64_t out, int relu, int pool,
                             int threads) {
    static Kernel *const kernels[] = {convolve_tiles_bf16, convolve_tiles_avx2, convolve_tiles_avx512};
    if (!clipretrieval_winograd_runs(kernel)) return NO_INSTRUCTIONS;
    int multiple = kernel == BF16_AVX512 ? 32 : 16, tile = kernel == BF16_AVX512 ? 2 : 4;
    if (n < 0 || height < 1 || width < 1 || in < multiple || in % multiple || out < multiple || out % multiple)
        return BAD_SIZES;
    int size = kernel == BF16_AVX512 ? sizeof(bf16) : sizeof(float);
    Convolution convolution = {x, weight, bias, y, n, height, width, in, out, relu, pool, tile, size};
    int64_t tiles = n * ((height + tile - 1) / tile) * ((width + tile - 1) / tile);
    if (tiles == 0) return DONE;
    int64_t products = (tile + 2) * (tile + 2) * tiles * in * out;
    int64_t count = least(least(threads, MOST_THREADS), 1 + products / PRODUCTS_A_THREAD);
    count = count < 1 ? 1 : least(count, tiles);
    Range ranges[MOST_THREADS];
    pthread_t others[MOST_THREADS];
    int started[MOST_THREADS] = {0}, failed = DONE;
    for (int64_t i = 0; i < count; i++)
        ranges[i] = (Range){&convolution, kernels[kernel], tiles * i / count, tiles * (i + 1) / count, DONE};
    for (int64_t i = 1; i < count; i++)
        started[i] = pthread_create(&others[i], NULL, run_range, &ranges[i]) == 0;
    for (int64_t i = 0; i < count; i++)
        if (!started[i]) run_range(&ranges[i]);
    for (int64_t i = 0; i < count; i++) {
        if (started[i]) pthread_join(others[i], NULL);
        if (ranges[i].failed) failed = ranges[i].failed;
    }
    return failed;
}
#else
int clipretrieval_winograd_runs(int kernel) { return 0 * kernel; }
#endif
