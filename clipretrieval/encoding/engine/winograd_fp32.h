/* F(4×4, 3×3) in float32; winograd.c includes this once for each instruction set, with LANES 8 or 16.
 *
 * A tile of 4×4 outputs takes 36 products a pair of channels where the plain sum takes 144. The transforms are
 * those of the points 0, ±A, ±B and ∞. 5/8 and 3/2 are exact, as are their squares, and round off half as much
 * as the usual 1 and 2.
 *
 * Memory: weight is float32 as winograd.py packs it, (out / 16, 36, in, 16).
 */
#if LANES == 16
#define SIMD __attribute__((target("avx512f")))
#define FOR_SIMD(name) name##_avx512
#define FLOATS __m512
#define VECTOR(operation) _mm512_##operation##_ps
enum { ROWS_AVX512 = 14 };
#define ROWS ROWS_AVX512
#else
#define SIMD __attribute__((target("avx2,fma")))
#define FOR_SIMD(name) name##_avx2
#define FLOATS __m256
#define VECTOR(operation) _mm256_##operation##_ps
enum { ROWS_AVX2 = 6 };
#define ROWS ROWS_AVX2
#endif
#define SIMD_INLINE static inline __attribute__((always_inline)) SIMD
#define SET VECTOR(set1)
#define LOAD VECTOR(loadu)
#define STORE VECTOR(storeu)
#define FMA VECTOR(fmadd)    /* a·b + c */
#define FNMA VECTOR(fnmadd)  /* c − a·b */

/* Bᵀ d of six pixels in a row or a column, `step` apart. */
SIMD_INLINE void FOR_SIMD(transform_six)(const FLOATS *d, int step, FLOATS v[6]) {
    const FLOATS a = SET(A), b = SET(B), aa = SET(A * A), bb = SET(B * B), product = SET(A * A * B * B);
    const FLOATS sum = SET(A * A + B * B);
    FLOATS d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step];
    FLOATS even_a = FNMA(bb, d2, d4), odd_a = FNMA(bb, d1, d3), even_b = FNMA(aa, d2, d4), odd_b = FNMA(aa, d1, d3);
    v[0] = FNMA(sum, d2, FMA(product, d[0], d4));
    v[1] = FMA(a, odd_a, even_a);
    v[2] = FNMA(a, odd_a, even_a);
    v[3] = FMA(b, odd_b, even_b);
    v[4] = FNMA(b, odd_b, even_b);
    v[5] = FNMA(sum, d3, FMA(product, d1, d[5 * step]));
}

/* One tile's 36 transformed pixels, `position` floats apart, as are its groups of 16 channels by `group`. */
static SIMD void FOR_SIMD(transform_tile)(const void *const pixels[36], float *v, int64_t position, int64_t group,
                                          int64_t channels) {
    for (int64_t c = 0; c < channels; c += LANES) {
        float *to = v + c / 16 * group + c % 16;
        FLOATS t[36];
        UNROLL for (int j = 0; j < 6; j++) {
            FLOATS d[6], column[6];
            UNROLL for (int i = 0; i < 6; i++) d[i] = LOAD((const float *)pixels[6 * i + j] + c);
            FOR_SIMD(transform_six)(d, 1, column);
            UNROLL for (int i = 0; i < 6; i++) t[6 * i + j] = column[i];
        }
        UNROLL for (int i = 0; i < 6; i++) {
            FLOATS row[6];
            FOR_SIMD(transform_six)(t + 6 * i, 1, row);
            UNROLL for (int j = 0; j < 6; j++) STORE(to + (6 * i + j) * position, row[j]);
        }
    }
}

/* m (rows, columns) = v (in / 16, rows, 16) · u (in, columns), all sums in registers; columns are vectors. */
SIMD_INLINE void FOR_SIMD(multiply)(const float *v, int64_t group, const float *u, int64_t panel, float *m,
                                    int64_t in, const int rows, const int columns) {
    FLOATS sums[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int b = 0; b < columns; b++) sums[r][b] = SET(0);
    for (int64_t c = 0; c < in; c += 16, v += group) {
        for (int k = 0; k < 16; k++, u += 16) {
            FLOATS weights[2];
            UNROLL for (int b = 0; b < columns; b++) weights[b] = LOAD(u + (LANES == 16 ? b * panel : b * LANES));
            UNROLL for (int r = 0; r < rows; r++) {
                FLOATS value = SET(v[r * 16 + k]);
                UNROLL for (int b = 0; b < columns; b++) sums[r][b] = FMA(weights[b], value, sums[r][b]);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int b = 0; b < columns; b++) STORE(m + r * 2 * LANES + b * LANES, sums[r][b]);
}

static SIMD void FOR_SIMD(multiply_rows)(const float *v, int64_t group, const float *u, int64_t panel, float *m,
                                         int64_t in, int rows, int columns) {
#define CASE(r)                                                                       \
    case r:                                                                           \
        if (columns == 2) FOR_SIMD(multiply)(v, group, u, panel, m, in, r, 2);        \
        else FOR_SIMD(multiply)(v, group, u, panel, m, in, r, 1);                     \
        return;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if LANES == 16
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
#undef CASE
}

/* Aᵀ m of six products. */
SIMD_INLINE void FOR_SIMD(finish_six)(const FLOATS m[6], FLOATS y[4]) {
    FLOATS even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = FMA(SET(A), odd_a, SET(B) * odd_b);
    y[2] = FMA(SET(A * A), even_a, SET(B * B) * even_b);
    y[3] = FMA(SET(A * A * A), odd_a, FMA(SET(B * B * B), odd_b, m[5]));
}

/* Aᵀ m A plus the bias: a tile's 4×4 outputs, or the means of 2×2. */
static SIMD void FOR_SIMD(finish_tile)(const float *m, int64_t position, int lanes, const float *bias, Outputs to,
                                       int relu, int pool) {
    for (int o = 0; o < lanes; o += LANES) {
        FLOATS t[24], y[16], b = LOAD(bias + o);
        float *out = (float *)to.y + o;
        UNROLL for (int j = 0; j < 6; j++) {
            FLOATS column[6], four[4];
            UNROLL for (int i = 0; i < 6; i++) column[i] = LOAD(m + (6 * i + j) * position + o);
            FOR_SIMD(finish_six)(column, four);
            UNROLL for (int i = 0; i < 4; i++) t[6 * i + j] = four[i];
        }
        UNROLL for (int i = 0; i < 4; i++) {
            FOR_SIMD(finish_six)(t + 6 * i, y + 4 * i);
            UNROLL for (int j = 4 * i; j < 4 * i + 4; j++) {
                y[j] = y[j] + b;
                if (relu) y[j] = VECTOR(max)(SET(0), y[j]); /* keeps NaN */
            }
        }
        if (pool) {
            UNROLL for (int i = 0; i < 2; i++)
                UNROLL for (int j = 0; j < 2; j++) {
                    const FLOATS *s = y + 8 * i + 2 * j;
                    if (i < to.rows && j < to.columns)
                        STORE(out + i * to.below + j * to.right, (s[0] + s[1] + s[4] + s[5]) * SET(0.25f));
                }
            continue;
        }
        UNROLL for (int i = 0; i < 4; i++)
            UNROLL for (int j = 0; j < 4; j++)
                if (i < to.rows && j < to.columns) STORE(out + i * to.below + j * to.right, y[4 * i + j]);
    }
}

static SIMD int FOR_SIMD(convolve_tiles)(const Convolution *c, int64_t first, int64_t last) {
    const int64_t in = c->in, most = FP32_BLOCK_BYTES / (36 * 4 * in);
    int64_t blocks = rounded_up(last - first, most < 2 * ROWS ? 2 * ROWS : most) / (most < 2 * ROWS ? 2 * ROWS : most);
    int64_t block = (last - first + blocks - 1) / blocks;
    /* One cache line more, lest the 36 planes fall into the same set of the cache. */
    int64_t group = 16 * block, position = block * in + 16, m_position = block * 2 * LANES + 16, panel = 36 * 16 * in;
    float *v = scratch((size_t)(4 * (36 * (position + m_position) + in)));
    if (v == NULL) return NO_MEMORY;
    float *m = v + 36 * position, *zeros = m + 36 * m_position;
    memset(zeros, 0, (size_t)(4 * in));
    for (int64_t start = first; start < last; start += block) {
        int64_t here = least(block, last - start), groups = (here + ROWS - 1) / ROWS;
        Place at = place_of(c, start);
        for (int64_t t = 0; t < here; t++, at = next_place(c, at)) {
            const void *pixels[36];
            find_pixels(c, at, zeros, pixels);
            FOR_SIMD(transform_tile)(pixels, v + t * 16, position, group, in);
        }
        for (int64_t o = 0; o < c->out; o += 2 * LANES) {
            int lanes = (int)least(2 * LANES, c->out - o);
            for (int64_t p = 0; p < 36; p++) {
                const float *u = (const float *)c->weight + o / 16 * panel + p * 16 * in;
                for (int64_t i = 0; i < groups; i++) {
                    int64_t t = here * i / groups, rows = here * (i + 1) / groups - t;
                    FOR_SIMD(multiply_rows)(v + p * position + t * 16, group, u, panel,
                                            m + p * m_position + t * 2 * LANES, in, (int)rows, lanes / LANES);
                }
            }
            at = place_of(c, start);
            for (int64_t t = 0; t < here; t++, at = next_place(c, at)) {
                Outputs to = find_outputs(c, at);
                to.y = (float *)to.y + o;
                FOR_SIMD(finish_tile)(m + t * 2 * LANES, m_position, lanes, c->bias + o, to, c->relu, c->pool);
            }
        }
    }
    return DONE;
}

#undef SIMD
#undef FOR_SIMD
#undef FLOATS
#undef VECTOR
#undef ROWS
#undef SIMD_INLINE
#undef SET
#undef LOAD
#undef STORE
#undef FMA
#undef FNMA
#undef LANES
