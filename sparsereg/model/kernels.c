/* BatchNorm with or without ReLU, and 3x3 max-pooling with padding 1, forward and backward, of
   bfloat16 tensors in channels_last order, for processors with AVX-512 and its bfloat16
   instructions. fused.py says what the functions compute. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef __AVX512BF16__
#error "this processor has no bfloat16 instructions"
#endif

typedef uint16_t bf16;

/* Vectors have 16 numbers, the last one of a row as many as are left. */
enum { LANES = 16 };

static inline __mmask16 lanes(long left) { return left >= LANES ? 0xffff : (1u << left) - 1; }

static inline __m512 load(const bf16 *from, __mmask16 which) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(which, from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline void store(bf16 *to, __mmask16 which, __m512 v) {
    _mm256_mask_storeu_epi16(to, which, (__m256i)_mm512_cvtneps_pbh(v));
}

/* BatchNorm reads tensors whose channels come in parts, as if they were concatenated. A part has
   `channels` values of each pixel; the next pixel comes `step` values later. */
typedef struct { bf16 *data; long step, channels; } part;

static long least(long a, long b) { return a < b ? a : b; }

/* Tables by channel have zeros behind the last one, because whole vectors are read. */
static long padded(long channels) { return channels + LANES; }

/* The normalisation is x · scale + shift. */
static void factors(const float *weight, const float *bias, const float *mean, const float *inverse,
                    long channels, float *scale, float *shift) {
    memset(scale, 0, padded(channels) * sizeof(float));
    memset(shift, 0, padded(channels) * sizeof(float));
    for (long c = 0; c < channels; c++) {
        scale[c] = weight[c] * inverse[c];
        shift[c] = bias[c] - mean[c] * scale[c];
    }
}

/* The gradient where the activation, max(normalised x, lowest), lets it pass. */
static inline __m512 passed(__m512 g, __m512 x, __m512 scale, __m512 shift, __m512 lowest) {
    __m512 y = _mm512_fmadd_ps(x, scale, shift);
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, lowest, _CMP_NLE_UQ), g);
}

/* The sums of x and x² over some pixels or, given gradients g, of g and g·x where the activation
   lets them pass. */
static void sums_of_block(const part *p, long first, long end, const bf16 *g, long g_step,
                          const float *scale, const float *shift, __m512 lowest, float *a, float *b) {
    for (long c = 0; c < p->channels; c += LANES) {
        __mmask16 which = lanes(p->channels - c);
        __m512 sum_a = _mm512_setzero_ps(), sum_b = sum_a;
        __m512 by = _mm512_loadu_ps(scale + c), plus = _mm512_loadu_ps(shift + c);
        for (long i = first; i < end; i++) {
            __m512 x = load(p->data + i * p->step + c, which), d = x;
            if (g) d = passed(load(g + i * g_step + c, which), x, by, plus, lowest);
            sum_a += d;
            sum_b += d * x;
        }
        _mm512_mask_storeu_ps(a + c, which, sum_a);
        _mm512_mask_storeu_ps(b + c, which, sum_b);
    }
}

/* Pixels that fit into the first-level cache. Their sums are in single precision, those of blocks in
   double. */
enum { BLOCK = 8 };

static void sums(const part *parts, long number, const bf16 *g, long pixels, long channels,
                 const float *scale, const float *shift, float lowest, double *of_a, double *of_b) {
    memset(of_a, 0, channels * sizeof(double));
    memset(of_b, 0, channels * sizeof(double));
    #pragma omp parallel
    {
        float a[channels], b[channels];
        double all_a[channels], all_b[channels];
        memset(all_a, 0, sizeof all_a);
        memset(all_b, 0, sizeof all_b);
        #pragma omp for
        for (long first = 0; first < pixels; first += BLOCK) {
            long end = least(first + BLOCK, pixels), c = 0;
            for (const part *p = parts; p < parts + number; c += p++->channels)
                sums_of_block(p, first, end, g ? g + c : NULL, channels, scale + c, shift + c,
                              _mm512_set1_ps(lowest), a + c, b + c);
            for (long c = 0; c < channels; c++) {
                all_a[c] += a[c];
                all_b[c] += b[c];
            }
        }
        #pragma omp critical
        for (long c = 0; c < channels; c++) {
            of_a[c] += all_a[c];
            of_b[c] += all_b[c];
        }
    }
}

static void normalise(const part *p, long first, long end, bf16 *y, long y_step, const float *scale,
                      const float *shift, __m512 lowest) {
    for (long c = 0; c < p->channels; c += LANES) {
        __mmask16 which = lanes(p->channels - c);
        __m512 by = _mm512_loadu_ps(scale + c), plus = _mm512_loadu_ps(shift + c);
        for (long i = first; i < end; i++) {
            __m512 v = _mm512_fmadd_ps(load(p->data + i * p->step + c, which), by, plus);
            store(y + i * y_step + c, which, _mm512_max_ps(lowest, v)); /* NaN stays */
        }
    }
}

void batch_norm(const part *parts, long number, bf16 *y, long pixels, long channels,
                const float *weight, const float *bias, float *running_mean, float *running_var,
                float momentum, float eps, float lowest, float *mean, float *inverse) {
    double sum[channels], squares[channels];
    float scale[padded(channels)], shift[padded(channels)];
    sums(parts, number, NULL, pixels, channels, scale, shift, 0, sum, squares);
    for (long c = 0; c < channels; c++) {
        double m = sum[c] / pixels, var = fmax(squares[c] / pixels - m * m, 0);
        mean[c] = m;
        inverse[c] = 1 / sqrt(var + eps);
        running_mean[c] += momentum * (m - running_mean[c]);
        running_var[c] += momentum * (var * pixels / (pixels - 1) - running_var[c]);
    }
    factors(weight, bias, mean, inverse, channels, scale, shift);
    #pragma omp parallel for
    for (long first = 0; first < pixels; first += BLOCK) {
        long end = least(first + BLOCK, pixels), c = 0;
        for (const part *p = parts; p < parts + number; c += p++->channels)
            normalise(p, first, end, y + c, channels, scale + c, shift + c, _mm512_set1_ps(lowest));
    }
}

static void differentiate(const part *p, const part *to, long first, long end, const bf16 *g,
                          long g_step, const float *scale, const float *shift, __m512 lowest,
                          const float *slope, const float *offset) {
    for (long c = 0; c < p->channels; c += LANES) {
        __mmask16 which = lanes(p->channels - c);
        __m512 by = _mm512_loadu_ps(scale + c), plus = _mm512_loadu_ps(shift + c);
        __m512 per_x = _mm512_loadu_ps(slope + c), rest = _mm512_loadu_ps(offset + c);
        for (long i = first; i < end; i++) {
            __m512 x = load(p->data + i * p->step + c, which);
            __m512 d = passed(load(g + i * g_step + c, which), x, by, plus, lowest);
            store(to->data + i * to->step + c, which, d * by + (x * per_x + rest));
        }
    }
}

void batch_norm_backward(const part *parts, const part *g_parts, long number, const bf16 *gy,
                         long pixels, long channels, const float *weight, const float *bias,
                         const float *mean, const float *inverse, float lowest, float *g_weight,
                         float *g_bias) {
    float scale[padded(channels)], shift[padded(channels)];
    float slope[padded(channels)], offset[padded(channels)];
    double sum[channels], products[channels];
    factors(weight, bias, mean, inverse, channels, scale, shift);
    sums(parts, number, gy, pixels, channels, scale, shift, lowest, sum, products);
    memset(slope, 0, sizeof slope);
    memset(offset, 0, sizeof offset);
    for (long c = 0; c < channels; c++) { /* scale · (g - mean of g - (x - mean) · per_x) */
        g_bias[c] = sum[c];
        g_weight[c] = (products[c] - mean[c] * sum[c]) * inverse[c];
        float per_x = g_weight[c] / pixels * inverse[c];
        slope[c] = -scale[c] * per_x;
        offset[c] = -scale[c] * (g_bias[c] / pixels - mean[c] * per_x);
    }
    #pragma omp parallel for
    for (long first = 0; first < pixels; first += BLOCK) {
        long end = least(first + BLOCK, pixels), c = 0;
        for (long i = 0; i < number; c += parts[i++].channels)
            differentiate(parts + i, g_parts + i, first, end, gy + c, channels, scale + c, shift + c,
                          _mm512_set1_ps(lowest), slope + c, offset + c);
    }
}

/* Max-pooling looks for the largest of three neighbours twice: in each row, then among the rows.
   It compares whole numbers of 16 bits in the order of the numbers they stand for, -0 as 0 and NaN
   above all. NOTHING, the padding, is below all. */
enum { NOTHING = INT16_MIN };

static inline int16_t key(bf16 v) {
    int16_t size = v & 0x7fff;
    return size > 0x7f80 ? 0x7fff : v & 0x8000 ? -size : size;
}

static inline bf16 value(int16_t key) { return key < 0 ? 0x8000 | -key : key; }

/* The largest of three, and which it is, the first of equals. */
static void largest(const int16_t *restrict first, const int16_t *restrict middle,
                    const int16_t *restrict last, long n, int16_t *restrict best,
                    uint8_t *restrict place) {
    for (long i = 0; i < n; i++) {
        int16_t b = middle[i] > first[i] ? middle[i] : first[i];
        uint8_t p = middle[i] > first[i];
        best[i] = last[i] > b ? last[i] : b;
        place[i] = last[i] > b ? 2 : p;
    }
}

static void fill(int16_t *to, long n) {
    for (long i = 0; i < n; i++) to[i] = NOTHING;
}

/* `columns` are the places found in each row of x, `rows` those among three rows. */
void max_pool(const bf16 *x, bf16 *y, uint8_t *rows, uint8_t *columns, long images, long height,
              long width, long channels, long stride) {
    long out_height = (height - 1) / stride + 1, out_width = (width - 1) / stride + 1;
    long n = out_width * channels, in = width * channels;
    #pragma omp parallel
    {
        int16_t *keys = malloc((in + 2 * channels + (height + 3) * n) * sizeof(int16_t));
        int16_t *best = keys + in + 2 * channels, *out = best + (height + 2) * n;
        fill(keys, in + 2 * channels);
        fill(best, (height + 2) * n);
        #pragma omp for
        for (long image = 0; image < images; image++) {
            for (long h = 0; h < height; h++) {
                const bf16 *row = x + (image * height + h) * in;
                uint8_t *place = columns + (image * height + h) * n;
                for (long i = 0; i < in; i++) keys[channels + i] = key(row[i]);
                long together = stride == 1 ? n : channels; /* windows that lie side by side */
                for (long i = 0; i < n; i += together) {
                    const int16_t *from = keys + i * stride;
                    largest(from, from + channels, from + 2 * channels, together,
                            best + (h + 1) * n + i, place + i);
                }
            }
            for (long o = 0; o < out_height; o++) {
                const int16_t *from = best + o * stride * n;
                long row = image * out_height + o;
                largest(from, from + n, from + 2 * n, n, out, rows + row * n);
                for (long i = 0; i < n; i++) y[row * n + i] = value(out[i]);
            }
        }
        free(keys);
    }
}

static inline __mmask16 equal(const uint8_t *place, int here, __mmask16 which) {
    __m128i places = _mm_maskz_loadu_epi8(which, place);
    return _mm_mask_cmpeq_epi8_mask(which, places, _mm_set1_epi8(here));
}

/* A value may be the first, the middle and the last of three windows. Their gradients g, NULL where
   there is no window, are added where it was their largest: of rows, then of columns. */
static void collect_rows(const bf16 *const g[3], const uint8_t *const place[3], long n, float *to) {
    for (long i = 0; i < n; i += LANES) {
        __mmask16 which = lanes(n - i);
        __m512 sum = _mm512_setzero_ps();
        for (int here = 0; here < 3; here++)
            if (g[here]) sum += load(g[here] + i, equal(place[here] + i, here, which));
        _mm512_mask_storeu_ps(to + i, which, sum);
    }
}

static void collect_columns(const float *const g[3], const uint8_t *const place[3], long n,
                            bf16 *to) {
    for (long i = 0; i < n; i += LANES) {
        __mmask16 which = lanes(n - i);
        __m512 sum = _mm512_setzero_ps();
        for (int here = 0; here < 3; here++)
            if (g[here])
                sum += _mm512_maskz_loadu_ps(equal(place[here] + i, here, which), g[here] + i);
        store(to + i, which, sum);
    }
}

/* The window of which value `i` of a row or column is the first, middle or last; -1 for none. */
static long window(long i, int here, long stride, long windows) {
    long middle = i + 1 - here;
    return middle >= 0 && middle % stride == 0 && middle / stride < windows ? middle / stride : -1;
}

void max_pool_backward(const bf16 *gy, const uint8_t *rows, const uint8_t *columns, bf16 *gx,
                       long images, long height, long width, long channels, long stride) {
    long out_height = (height - 1) / stride + 1, out_width = (width - 1) / stride + 1;
    long n = out_width * channels;
    #pragma omp parallel
    {
        float *sum = malloc(n * sizeof(float));
        #pragma omp for
        for (long row = 0; row < images * height; row++) {
            const bf16 *g[3];
            const uint8_t *place[3];
            for (int here = 0; here < 3; here++) {
                long o = window(row % height, here, stride, out_height);
                long start = (row / height * out_height + o) * n;
                g[here] = o < 0 ? NULL : gy + start;
                place[here] = rows + start;
            }
            collect_rows(g, place, n, sum);
            for (long w = 0; w < width; w++) {
                const float *g[3];
                for (int here = 0; here < 3; here++) {
                    long o = window(w, here, stride, out_width);
                    g[here] = o < 0 ? NULL : sum + o * channels;
                    place[here] = columns + row * n + o * channels;
                }
                collect_columns(g, place, channels, gx + (row * width + w) * channels);
            }
        }
        free(sum);
    }
}
