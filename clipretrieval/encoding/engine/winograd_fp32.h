/* The float32 kernel, F(4×4, 3×3); winograd.c includes it for LANES of 8 (AVX2 with FMA) and 16 (AVX-512).
 *
 * A tile of 4×4 outputs takes 36 products a pair of channels where the plain sum takes 144. The transforms are
 * those of the points 0, ±A, ±B and ∞, for which 5/8 and 3/2 have exact squares and round off
 * half as much as the usual 1 and 2.
 */
#if LANES == 16
#define SIMD __attribute__((target("avx512f")))
#define NAMED(name) name##_avx512
#define FLOATS __m512
#define VECTOR(operation) _mm512_##operation##_ps
#define ROWS 14 /* by two vectors: with two of weights and one of inputs, 31 of the 32 registers */
#else
#define SIMD __attribute__((target("avx2,fma")))
#define NAMED(name) name##_avx2
#define FLOATS __m256
#define VECTOR(operation) _mm256_##operation##_ps
#define ROWS 6 /* 15 of 16 registers */
#endif
#define SIMD_INLINE static inline __attribute__((always_inline)) SIMD
#define SET VECTOR(set1)
#define LOAD VECTOR(loadu)
#define STORE VECTOR(storeu)
#define FMA VECTOR(fmadd)   /* a·b + c */
#define FNMA VECTOR(fnmadd) /* c − a·b */

/* Bᵀ d of six pixels. */
SIMD_INLINE void NAMED(transform_six)(const FLOATS d[6], FLOATS v[6]) {
    const FLOATS a = SET(A), b = SET(B), aa = SET(A * A), bb = SET(B * B);
    const FLOATS product = SET(A * A * B * B), sum = SET(A * A + B * B);
    FLOATS even_a = FNMA(bb, d[2], d[4]), odd_a = FNMA(bb, d[1], d[3]);
    FLOATS even_b = FNMA(aa, d[2], d[4]), odd_b = FNMA(aa, d[1], d[3]);
    v[0] = FNMA(sum, d[2], FMA(product, d[0], d[4]));
    v[1] = FMA(a, odd_a, even_a);
    v[2] = FNMA(a, odd_a, even_a);
    v[3] = FMA(b, odd_b, even_b);
    v[4] = FNMA(b, odd_b, even_b);
    v[5] = FNMA(sum, d[3], FMA(product, d[1], d[5]));
}

/* Aᵀ m of six products. */
SIMD_INLINE void NAMED(finish_six)(const FLOATS m[6], FLOATS y[4]) {
    FLOATS even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = FMA(SET(A), odd_a, SET(B) * odd_b);
    y[2] = FMA(SET(A * A), even_a, SET(B * B) * even_b);
    y[3] = FMA(SET(A * A * A), odd_a, FMA(SET(B * B * B), odd_b, m[5]));
}

/* One tile's 36 transformed pixels, `plane` apart; v is (channels / 16, block, 16), of which this is one row. */
static SIMD void NAMED(transform_tile)(const void *const pixels[36], float *v, int64_t plane, int64_t block,
                                       int64_t channels) {
    for (int64_t c = 0; c < channels; c += LANES) {
        float *to = v + c / 16 * 16 * block + c % 16;
        FLOATS t[36];
        UNROLL for (int j = 0; j < 6; j++) {
            FLOATS d[6], column[6];
            UNROLL for (int i = 0; i < 6; i++) d[i] = LOAD((const float *)pixels[6 * i + j] + c);
            NAMED(transform_six)(d, column);
            UNROLL for (int i = 0; i < 6; i++) t[6 * i + j] = column[i];
        }
        UNROLL for (int i = 0; i < 6; i++) {
            FLOATS row[6];
            NAMED(transform_six)(t + 6 * i, row);
            UNROLL for (int j = 0; j < 6; j++) STORE(to + (6 * i + j) * plane, row[j]);
        }
    }
}

/* A matrix product: v is (in / 16, block, 16), u (in, 16), with the next 16 outputs `panel` further on. */
typedef struct {
    int64_t in, block, panel;
    const float *v, *u;
    const char *ahead; /* weights that come next, for the cache: each step over `in` fetches a line */
    int64_t line;
} NAMED(Factors);

/* m (rows, 2·LANES) = v · u, or its first LANES columns: all sums in registers. */
SIMD_INLINE void NAMED(multiply)(const NAMED(Factors) *f, float *m, const int rows, const int columns) {
    const int64_t next_v = 16 * f->block, next_u = LANES == 16 ? f->panel : LANES, line = f->line;
    const float *v = f->v, *u = f->u, *end = u + 16 * f->in;
    const char *ahead = f->ahead;
    FLOATS sums[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int b = 0; b < columns; b++) sums[r][b] = SET(0);
    for (; u < end; v += next_v)
        for (int k = 0; k < 16; k++, u += 16, ahead += line) {
            FLOATS weights[2];
            _mm_prefetch(ahead, _MM_HINT_T1);
            UNROLL for (int b = 0; b < columns; b++) weights[b] = LOAD(u + b * next_u);
            UNROLL for (int r = 0; r < rows; r++) {
                FLOATS value = SET(v[r * 16 + k]);
                UNROLL for (int b = 0; b < columns; b++) sums[r][b] = FMA(weights[b], value, sums[r][b]);
            }
        }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int b = 0; b < columns; b++) STORE(m + (r * 2 + b) * LANES, sums[r][b]);
}

static SIMD void NAMED(multiply_rows)(const NAMED(Factors) *f, float *m, int64_t rows, int columns) {
#define CASE(r)                                      \
    case r:                                          \
        if (columns == 2) NAMED(multiply)(f, m, r, 2); \
        else NAMED(multiply)(f, m, r, 1);            \
        break;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS == 14
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
#undef CASE
}

/* Aᵀ m A plus the bias: a tile's 4×4 outputs, or the means of 2×2. */
static SIMD void NAMED(finish_tile)(const float *m, int64_t plane, int lanes, const float *bias, Outputs to,
                                    int relu, int pool) {
    for (int o = 0; o < lanes; o += LANES) {
        FLOATS t[24], y[16], b = LOAD(bias + o);
        float *out = (float *)to.y + o;
        UNROLL for (int j = 0; j < 6; j++) {
            FLOATS products[6], column[4];
            UNROLL for (int i = 0; i < 6; i++) products[i] = LOAD(m + (6 * i + j) * plane + o);
            NAMED(finish_six)(products, column);
            UNROLL for (int i = 0; i < 4; i++) t[6 * i + j] = column[i];
        }
        const FLOATS least = relu ? SET(0) : SET(-INFINITY);
        UNROLL for (int i = 0; i < 4; i++) {
            NAMED(finish_six)(t + 6 * i, y + 4 * i);
            UNROLL for (int j = 4 * i; j < 4 * i + 4; j++) y[j] = VECTOR(max)(least, y[j] + b); /* keeps NaN */
        }
        if (pool)
            UNROLL for (int i = 0; i < 4; i++) {
                const FLOATS *s = y + i / 2 * 8 + i % 2 * 2;
                FLOATS mean = (s[0] + s[1] + s[4] + s[5]) * SET(0.25f);
                if (i / 2 < to.rows && i % 2 < to.columns) STORE(out + i / 2 * to.below + i % 2 * to.right, mean);
            }
        else
            UNROLL for (int i = 0; i < 16; i++)
                if (i / 4 < to.rows && i % 4 < to.columns) STORE(out + i / 4 * to.below + i % 4 * to.right, y[i]);
    }
}

static SIMD int NAMED(convolve_tiles)(const Convolution *c, int64_t first, int64_t last) {
    const int64_t in = c->in, panel = 36 * 16 * in;
    int64_t fitting = FP32_BLOCK_BYTES / (36 * 4 * in);
    if (fitting < FP32_LEAST_TILES) fitting = FP32_LEAST_TILES;
    int64_t blocks = (last - first + fitting - 1) / fitting, block = (last - first + blocks - 1) / blocks;
    /* One cache line more, lest the 36 planes fall into the same set of the cache. */
    int64_t v_plane = block * in + 16, m_plane = block * 2 * LANES + 16;
    float *v = scratch((size_t)(4 * (36 * (v_plane + m_plane) + in)));
    if (v == NULL) return NO_MEMORY;
    float *m = v + 36 * v_plane, *zeros = m + 36 * m_plane;
    memset(zeros, 0, (size_t)(4 * in));
    NAMED(Factors) f = {in, block, panel, NULL, NULL, NULL, 0};
    for (int64_t start = first; start < last; start += block) {
        int64_t here = least(block, last - start), groups = (here + ROWS - 1) / ROWS;
        Place at = place_of(c, start);
        for (int64_t t = 0; t < here; t++, at = next_place(c, at)) {
            const void *pixels[36];
            find_pixels(c, at, zeros, pixels);
            NAMED(transform_tile)(pixels, v + t * 16, v_plane, block, in);
        }
        for (int64_t o = 0; o < c->out; o += 2 * LANES) {
            int lanes = (int)least(2 * LANES, c->out - o);
            const float *u = (const float *)c->weight + o / 16 * panel;
            for (int64_t p = 0; p < 36; p++, u += 16 * in)
                for (int64_t i = 0, t = 0, next; i < groups; i++, t = next) {
                    next = here * (i + 1) / groups;
                    f.v = v + p * v_plane + t * 16, f.u = u;
                    /* The first groups, one for 16 outputs, fetch the next position's weights. */
                    int fetch = 16 * i < lanes && p < 35;
                    f.ahead = (const char *)(fetch ? u + i * panel + 16 * in : u), f.line = fetch ? 64 : 0;
                    NAMED(multiply_rows)(&f, m + p * m_plane + t * 2 * LANES, next - t, lanes / LANES);
                }
            at = place_of(c, start);
            for (int64_t t = 0; t < here; t++, at = next_place(c, at)) {
                Outputs to = find_outputs(c, at);
                to.y = (float *)to.y + o;
                NAMED(finish_tile)(m + t * 2 * LANES, m_plane, lanes, c->bias + o, to, c->relu, c->pool);
            }
        }
    }
    return DONE;
}

#undef LANES
#undef SIMD
#undef NAMED
#undef FLOATS
#undef VECTOR
#undef ROWS
#undef SIMD_INLINE
#undef SET
#undef LOAD
#undef STORE
#undef FMA
#undef FNMA
