/* The loops that every weight passes through, for `kernels.py`; see there what they compute. And one
   over memory, which has to be quick and may not be interrupted. */

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

/* On processors of which the compiler knows, loops are compiled several times; the fastest that the
   processor has is chosen when the library is loaded. PORTABLE is for tests: what others run. */
#if defined(__x86_64__) && defined(__linux__) && !defined(PORTABLE)
#define KNOWS_PROCESSORS
#endif
#if defined(KNOWS_PROCESSORS) && __GNUC__ >= 12
#define EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#elif defined(KNOWS_PROCESSORS)
#define EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define EACH_PROCESSOR
#endif
#define INLINED static inline __attribute__((always_inline))

#define INFINITY_BITS 0x7f800000u
/* Adding it leaves no bits for a fraction: the sum is rounded to nearest, ties to even, and its
   lowest byte is the integer in two's complement. */
#define ROUND 12582912.0f
#define SMALLEST_HALF 1 /* the bits of 2^-24 */

INLINED float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINED uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The bits of the float32 at `i`, where BF16 is stored as the upper half of one. */
INLINED uint32_t bits_at(const void *values, int is_bf16, size_t i)
{
    return is_bf16 ? (uint32_t)((const uint16_t *)values)[i] << 16 : ((const uint32_t *)values)[i];
}

/* The same times the factor of its column, where there are factors. */
INLINED float value_at(const void *values, int is_bf16, const float *factors, size_t i)
{
    float value = float_of(bits_at(values, is_bf16, i));
    return factors ? value * factors[i] : value;
}

/* The bits of the largest magnitude: without their sign, floats are ordered as their bits are. */
INLINED uint32_t peak_of(const void *values, int is_bf16, const float *factors, size_t count)
{
    uint32_t peak = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = bits_of(value_at(values, is_bf16, factors, i)) & 0x7fffffffu;
        peak = bits > peak ? bits : peak;
    }
    return peak;
}

INLINED int pack_row(const void *values, int is_bf16, const float *factors, size_t columns,
                     int8_t *packed, float *scale)
{
    uint32_t peak = peak_of(values, is_bf16, factors, columns);
    if (peak >= INFINITY_BITS)
        return 0;
    *scale = float_of(peak) / 127.0f;
    if (*scale < FLT_MIN)
        *scale = FLT_MIN;
    float inverse = 1.0f / *scale;
    for (size_t i = 0; i < columns; i++)
        packed[i] =
            (int8_t)(uint8_t)bits_of(value_at(values, is_bf16, factors, i) * inverse + ROUND);
    return 1;
}

INLINED int pack_rows(const void *values, int is_bf16, const float *factors, size_t rows,
                      size_t columns, int8_t *packed, float *scales)
{
    size_t stride = columns * (is_bf16 ? sizeof(uint16_t) : sizeof(float));
    for (size_t r = 0; r < rows; r++)
        if (!pack_row((const char *)values + r * stride, is_bf16, factors, columns,
                      packed + r * columns, scales + r))
            return 0;
    return 1;
}

EACH_PROCESSOR int pack_int8(const void *values, int is_bf16, const float *factors, size_t rows,
                             size_t columns, int8_t *packed, float *scales)
{
    /* Four loops, each of one kind of value. */
    if (is_bf16)
        return factors ? pack_rows(values, 1, factors, rows, columns, packed, scales)
                       : pack_rows(values, 1, NULL, rows, columns, packed, scales);
    return factors ? pack_rows(values, 0, factors, rows, columns, packed, scales)
                   : pack_rows(values, 0, NULL, rows, columns, packed, scales);
}

/* A product is taken in pieces, so that what is multiplied stays in the L1 cache: so many tokens by
   columns, with so many rows after one another. */
#define TOKENS 32
#define COLUMNS 512
#define ROWS 64

/* Adds the products of four tokens with two rows. Compilers make instructions of it that multiply
   and add many at once, and there are registers for no more sums. */
#define DEFINE_ADD_PRODUCTS(NAME, LEFT, RIGHT)                                                      \
    INLINED void NAME(const LEFT (*x)[COLUMNS], const RIGHT *r, const RIGHT *s, size_t count,       \
                      int32_t *of_r, int32_t *of_s)                                                 \
    {                                                                                               \
        int32_t ar = 0, br = 0, cr = 0, dr = 0, as = 0, bs = 0, cs = 0, ds = 0;                     \
        for (size_t i = 0; i < count; i++) {                                                        \
            ar += (int32_t)x[0][i] * r[i], as += (int32_t)x[0][i] * s[i];                           \
            br += (int32_t)x[1][i] * r[i], bs += (int32_t)x[1][i] * s[i];                           \
            cr += (int32_t)x[2][i] * r[i], cs += (int32_t)x[2][i] * s[i];                           \
            dr += (int32_t)x[3][i] * r[i], ds += (int32_t)x[3][i] * s[i];                           \
        }                                                                                           \
        of_r[0] += ar, of_r[1] += br, of_r[2] += cr, of_r[3] += dr;                                 \
        of_s[0] += as, of_s[1] += bs, of_s[2] += cs, of_s[3] += ds;                                 \
    }
DEFINE_ADD_PRODUCTS(add_wide_products, int16_t, int16_t)
DEFINE_ADD_PRODUCTS(add_byte_products, uint8_t, int8_t)

/* One piece: `size` columns of some tokens with some rows; `stride` is from row to row in both. The
   last of an odd number of rows is its own neighbour, and `sums` has room for that. */
EACH_PROCESSOR void add_piece(const int8_t *x, size_t tokens, const int8_t *rows, size_t count,
                              size_t stride, size_t size, int32_t (*sums)[TOKENS])
{
    int16_t wide[TOKENS][COLUMNS], pair[2][COLUMNS];
    for (size_t t = 0; t < tokens; t++)
        for (size_t i = 0; i < size; i++)
            wide[t][i] = x[t * stride + i];
    for (size_t r = 0; r < count; r += 2) {
        const int8_t *row = rows + r * stride, *next = r + 1 < count ? row + stride : row;
        for (size_t i = 0; i < size; i++)
            pair[0][i] = row[i], pair[1][i] = next[i];
        for (size_t t = 0; t < tokens; t += 4)
            add_wide_products(wide + t, pair[0], pair[1], size, sums[r] + t, sums[r + 1] + t);
    }
}

#ifdef KNOWS_PROCESSORS
/* The same with AVX-512 VNNI, which multiplies bytes, but unsigned with signed ones: 128 is added
   to what is on the left, and its share taken off again. */
__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,prefer-vector-width=512"))) static void
add_piece_vnni(const int8_t *x, size_t tokens, const int8_t *rows, size_t count, size_t stride,
               size_t size, int32_t (*sums)[TOKENS])
{
    uint8_t shifted[TOKENS][COLUMNS];
    for (size_t t = 0; t < tokens; t++)
        for (size_t i = 0; i < size; i++)
            shifted[t][i] = (uint8_t)(x[t * stride + i] + 128);
    for (size_t r = 0; r < count; r += 2) {
        const int8_t *row = rows + r * stride, *next = r + 1 < count ? row + stride : row;
        int32_t of_row = 0, of_next = 0;
        for (size_t i = 0; i < size; i++)
            of_row += row[i], of_next += next[i];
        for (size_t t = 0; t < tokens; t++)
            sums[r][t] -= 128 * of_row, sums[r + 1][t] -= 128 * of_next;
        for (size_t t = 0; t < tokens; t += 4)
            add_byte_products(shifted + t, row, next, size, sums[r] + t, sums[r + 1] + t);
    }
}
#define HAS_VNNI (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && \
                  __builtin_cpu_supports("avx512vl"))
#else
#define add_piece_vnni add_piece
#define HAS_VNNI 0
#endif

void multiply_int8(const int8_t *x, const float *x_scales, size_t tokens, const int8_t *rows,
                   const float *scales, size_t count, size_t columns, float *product,
                   size_t stride)
{
    int has_vnni = HAS_VNNI;
    for (size_t r = 0; r < count; r += ROWS)
        for (size_t t = 0; t < tokens; t += TOKENS) {
            size_t n = tokens - t < TOKENS ? tokens - t : TOKENS;
            size_t m = count - r < ROWS ? count - r : ROWS;
            int32_t sums[ROWS][TOKENS];
            memset(sums, 0, sizeof sums);
            for (size_t at = 0; at < columns; at += COLUMNS) {
                size_t size = columns - at < COLUMNS ? columns - at : COLUMNS;
                (has_vnni ? add_piece_vnni : add_piece)(
                    x + t * columns + at, n, rows + r * columns + at, m, columns, size, sums);
            }
            for (size_t i = 0; i < n; i++)
                for (size_t j = 0; j < m; j++)
                    product[(t + i) * stride + r + j] =
                        (float)((double)sums[j][i] * scales[r + j] * x_scales[t + i]);
        }
}

/* Eight numbers at once. Sums run in these lanes and then in the order of `sum_of`, so that numpy
   can do the same. */
#define LANES 8
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Masks __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINED float sum_of(const Lanes *lanes)
{
    const float *l = (const float *)lanes;
    return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
}

INLINED void choose(Lanes *values, Masks where, Lanes other)
{
    *values = (Lanes)(((Masks)*values & ~where) | ((Masks)other & where));
}

/* To the nearest integer of a range, ties to even. */
INLINED void to_integers(Lanes *values, float low, float high)
{
    const Lanes most = (Lanes){0} + high, least = (Lanes){0} + low;
    choose(values, *values > most, most);
    choose(values, *values < least, least);
    *values = (*values + ROUND) - ROUND;
}

INLINED void to_int4(Lanes *values)
{
    to_integers(values, -8.0f, 7.0f);
}

/* A positive float32 as float16, to nearest, ties to even; infinite beyond its range. */
INLINED uint16_t half_of(float value)
{
    uint32_t bits = bits_of(value);
    if (bits >= 0x477ff000u)
        return 0x7c00;
    if (bits < 0x38800000u) /* subnormal: one step is 2^-24, as that of 0.5f is */
        return (uint16_t)(bits_of(value + 0.5f) - 0x3f000000u);
    bits += 0xfffu + (bits >> 13 & 1u);
    return (uint16_t)((bits - 0x38000000u) >> 13);
}

INLINED float float_of_half(uint16_t half)
{
    if (half < 0x400)
        return (float)half * 0x1p-24f;
    return float_of(((uint32_t)half << 13) + 0x38000000u);
}

/* One block: see `pack_int4` in kernels.py. */
INLINED int pack_block(const float *values, size_t size, const float *reaches, size_t count,
                       const float *importance, uint8_t *packed, uint16_t *scale)
{
    uint32_t peak_bits = peak_of(values, 0, NULL, size);
    if (peak_bits >= INFINITY_BITS)
        return 0;
    float peak = float_of(peak_bits);
    if (peak < FLT_MIN) {
        *scale = SMALLEST_HALF;
        memset(packed, 0, size / 2);
        return 1;
    }
    const Lanes *lanes = (const Lanes *)values, *costs = (const Lanes *)importance;
    float unit = 1.0f / peak, best = -1.0f, factor = 1.0f / 7.0f;
    for (size_t c = 0; c < count; c++) {
        Lanes products = {0}, squares = {0};
        for (size_t i = 0; i < size / LANES; i++) {
            Lanes value = lanes[i] * unit, q = value * reaches[c];
            to_int4(&q);
            products += value * costs[i] * q;
            squares += costs[i] * q * q;
        }
        float product = sum_of(&products), square = sum_of(&squares);
        float gain = product * product / square;
        if (gain > best) {
            best = gain;
            factor = product / square;
        }
    }
    *scale = half_of(peak * factor);
    if (*scale >= 0x7c00)
        return 0;
    if (*scale == 0)
        *scale = SMALLEST_HALF;
    float inverse = 1.0f / float_of_half(*scale);
    for (size_t i = 0; i < size / LANES; i++) {
        Lanes q = lanes[i] * inverse;
        to_int4(&q);
        Masks bits = (Masks)(q + ROUND) & 15;
        const int32_t *b = (const int32_t *)&bits;
        for (size_t l = 0; l < LANES; l += 2)
            *packed++ = (uint8_t)(b[l] | b[l + 1] << 4);
    }
    return 1;
}

EACH_PROCESSOR int pack_int4(float *values, const float *factors, size_t rows, size_t columns,
                             size_t size, const float *reaches, size_t count,
                             const float *importance, uint8_t *packed, uint16_t *scales)
{
    for (float *end = values + rows * columns; values < end; values += columns) {
        for (size_t i = 0; factors && i < columns; i++)
            values[i] *= factors[i];
        for (size_t at = 0; at < columns; at += size, packed += size / 2)
            if (!pack_block(values + at, size, reaches, count, importance + at, packed, scales++))
                return 0;
    }
    return 1;
}

/* Blocks of int4 of which errors are made up for: see `round_compensated` in kernels.py. */
#define MOST_COLUMNS 256

/* Rows of a matrix, in lanes beside each other; lanes beyond the last row are zeros. */
INLINED void load_lanes(const float *values, size_t rows, size_t columns, Lanes *lanes)
{
    for (size_t c = 0; c < columns; c++)
        for (size_t r = 0; r < LANES; r++)
            lanes[c][r] = r < rows ? values[r * columns + c] : 0.0f;
}

INLINED int round_lanes(const Lanes *values, const Lanes *wanted, size_t rows, size_t columns,
                        const float *feedback, const float *costs, const float *reaches,
                        size_t count, int8_t *integers, uint16_t *scales)
{
    Lanes peak = {0}, least = (Lanes){0} + FLT_MAX, step[MOST_COLUMNS], now[MOST_COLUMNS];
    for (size_t c = 0; c < columns; c++) {
        choose(&peak, wanted[c] > peak, wanted[c]);
        choose(&peak, -wanted[c] > peak, -wanted[c]);
    }
    memset(integers, 0, rows * columns);
    for (size_t i = 0; i < count; i++) {
        Lanes scale = peak / reaches[i], loss = {0};
        uint16_t halves[LANES];
        for (size_t r = 0; r < LANES; r++) {
            halves[r] = half_of(scale[r]);
            if (halves[r] >= 0x7c00)
                return 0;
            if (halves[r] == 0)
                halves[r] = SMALLEST_HALF;
            scale[r] = float_of_half(halves[r]);
        }
        Lanes inverse = 1.0f / scale;
        memcpy(now, wanted, columns * sizeof *now);
        for (size_t c = 0; c < columns; c++) {
            Lanes q = now[c] * inverse;
            to_int4(&q);
            step[c] = q;
            Lanes rounded = q * scale, short_of = now[c] - rounded, error = values[c] - rounded;
            loss += short_of * short_of * costs[c];
            for (size_t later = c + 1; later < columns; later++)
                now[later] += error * feedback[c * columns + later];
        }
        for (size_t r = 0; r < rows; r++)
            if (loss[r] < least[r]) {
                least[r] = loss[r];
                scales[r] = halves[r];
                for (size_t c = 0; c < columns; c++)
                    integers[r * columns + c] = (int8_t)step[c][r];
            }
    }
    return 1;
}

EACH_PROCESSOR int round_compensated(const float *values, const float *wanted, size_t rows,
                                     size_t columns, const float *feedback, const float *costs,
                                     const float *reaches, size_t count, int8_t *integers,
                                     uint16_t *scales)
{
    Lanes v[MOST_COLUMNS], w[MOST_COLUMNS];
    for (size_t r = 0; r < rows; r += LANES) {
        size_t n = rows - r < LANES ? rows - r : LANES;
        load_lanes(values + r * columns, n, columns, v);
        load_lanes(wanted + r * columns, n, columns, w);
        if (!round_lanes(v, w, n, columns, feedback, costs, reaches, count, integers + r * columns,
                         scales + r))
            return 0;
    }
    return 1;
}

/* The same of rows with a scale that is known, in integers of any range: see `round_rows`. */
EACH_PROCESSOR void round_rows(const float *values, const float *wanted, size_t rows,
                               size_t columns, const float *feedback, const float *scales,
                               float low, float high, int8_t *integers)
{
    Lanes v[MOST_COLUMNS], now[MOST_COLUMNS];
    for (size_t r = 0; r < rows; r += LANES) {
        size_t n = rows - r < LANES ? rows - r : LANES;
        load_lanes(values + r * columns, n, columns, v);
        load_lanes(wanted + r * columns, n, columns, now);
        Lanes scale = (Lanes){0} + 1.0f;
        for (size_t l = 0; l < n; l++)
            scale[l] = scales[r + l];
        Lanes inverse = 1.0f / scale;
        for (size_t c = 0; c < columns; c++) {
            Lanes q = now[c] * inverse;
            to_integers(&q, low, high);
            Lanes error = v[c] - q * scale;
            for (size_t later = c + 1; later < columns; later++)
                now[later] += error * feedback[c * columns + later];
            for (size_t l = 0; l < n; l++)
                integers[(r + l) * columns + c] = (int8_t)q[l];
        }
    }
}

EACH_PROCESSOR void widen_bf16(const uint16_t *values, uint32_t *bits, size_t count)
{
    for (size_t i = 0; i < count; i++)
        bits[i] = bits_at(values, 1, i);
}

/* Palettes: see `palettize` in kernels.py. Values count as float16; the key of one is 0x8000 plus or
   minus the bits of its magnitude, so that keys are ordered as the values are. */
#define KEYS 65536
#define ZERO_KEY 0x8000
#define BEYOND_HALF 0x477ff000u /* from here on, float16 is infinite */
#define CHUNK 512               /* values whose keys are found at once */
#define MOST_CELLS 256
#define START_ROUNDS 4
#define PLACES 16
#define PASSES 3
#define FIRST_LEVEL 1
#define LAST_LEVEL 16 /* a 65,536th of a cell: one value */
#define IMPOSSIBLE -1e300

typedef struct {
    uint64_t weights[KEYS];      /* by key; all zeros between groups, as what follows */
    uint64_t present[KEYS / 64]; /* a bit for each key */
    uint16_t keys[KEYS];         /* of the distinct values, in order, as what follows */
    double mass[KEYS + 1], moment[KEYS + 1]; /* sums of w and of w x over those before */
    float density[KEYS];                     /* of centres, times the width that a value has */
    double share[KEYS];                      /* sums of it */
    uint8_t index[KEYS];                     /* in the palette, by key */
} Palettes;
const size_t palettes_bytes = sizeof(Palettes);

/* Without branches, for vectors. */
INLINED uint16_t key_of(uint32_t bits)
{
    uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
    uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    return (uint16_t)(bits >> 31 ? ZERO_KEY - half : ZERO_KEY + half);
}

INLINED float value_of(uint16_t key)
{
    return key < ZERO_KEY ? -float_of_half((uint16_t)(ZERO_KEY - key))
                          : float_of_half((uint16_t)(key - ZERO_KEY));
}

/* The keys of the values from `at` on, as many as are taken at once; how many that is. */
INLINED size_t find_keys(const void *values, int is_bf16, size_t at, size_t count, uint16_t *keys)
{
    size_t size = count - at < CHUNK ? count - at : CHUNK;
    for (size_t i = 0; i < size; i++)
        keys[i] = key_of(bits_at(values, is_bf16, at + i));
    return size;
}

INLINED void count_row(const void *values, int is_bf16, size_t columns, const uint32_t *costs,
                       uint64_t *weights, uint64_t *present)
{
    uint16_t keys[CHUNK];
    for (size_t at = 0; at < columns; at += CHUNK) {
        size_t size = find_keys(values, is_bf16, at, columns, keys);
        for (size_t i = 0; i < size; i++) {
            weights[keys[i]] += costs ? costs[at + i] : 1;
            if (present)
                present[keys[i] / 64] |= (uint64_t)1 << keys[i] % 64;
        }
    }
}

INLINED int count_rows(const void *values, int is_bf16, size_t rows, size_t columns,
                       const uint32_t *costs, uint64_t *weights, uint64_t *present)
{
    if (peak_of(values, is_bf16, NULL, rows * columns) >= BEYOND_HALF)
        return 0;
    size_t stride = columns * (is_bf16 ? sizeof(uint16_t) : sizeof(float));
    if (!costs)
        count_row(values, is_bf16, rows * columns, NULL, weights, present);
    for (size_t r = 0; costs && r < rows; r++)
        count_row((const char *)values + r * stride, is_bf16, columns, costs, weights, present);
    return 1;
}

INLINED void add_value(Palettes *p, size_t n, uint16_t key, uint64_t weight)
{
    p->keys[n] = key;
    p->mass[n + 1] = p->mass[n] + (double)weight;
    p->moment[n + 1] = p->moment[n] + (double)weight * value_of(key);
}

/* About the cube root, the same on every processor: a third of the exponent and of the fraction. */
INLINED float cube_root(float value)
{
    return float_of(bits_of(value) / 3 + 0x2a5137a0u);
}

/* Cells with equal shares of the density of centres that is best where there are many: the cube root
   of the values' own (Panter and Dite, 1951). No value has more of it than a cell. */
INLINED void start_cells(Palettes *p, size_t n, size_t cells, int32_t *cuts)
{
    for (size_t i = 0; i < n; i++) {
        float below = value_of(p->keys[i ? i - 1 : 0]);
        float above = value_of(p->keys[i + 1 < n ? i + 1 : i]);
        float width = above - below, weight = (float)(p->mass[i + 1] - p->mass[i]);
        p->density[i] = cube_root(weight * width * width);
    }
    double total = 0;
    for (int round = 0; round < START_ROUNDS; round++) {
        float most = round ? (float)(total / (double)cells) : FLT_MAX;
        total = 0;
        for (size_t i = 0; i < n; i++)
            p->share[i] = total += p->density[i] < most ? p->density[i] : most;
    }
    size_t at = 0, last = 0;
    cuts[0] = 0;
    for (size_t c = 1; c < cells; c++) {
        while (p->share[at] < total * (double)c / (double)cells)
            at++;
        last = at > last ? at : last + 1;
        cuts[c] = (int32_t)(last < n - cells + c ? last : n - cells + c);
    }
    cuts[cells] = (int32_t)n;
}

/* Moves all cuts at once to the best of the places that each has, `first` and so on in steps of a
   2^level-th of its cell, or of one value. Best is the largest sum of squared moments over masses.
   Whether one moved. */
INLINED int move_cuts(const Palettes *p, int32_t cells, int32_t *cuts, int level, int32_t first)
{
    int32_t places[MOST_CELLS + 1][PLACES];
    double from[MOST_CELLS + 1][PLACES];
    double masses[PLACES] = {0}, moments[PLACES] = {0}, best[PLACES] = {0};
    int32_t n = cuts[cells];
    for (int32_t c = 1; c <= cells; c++) {
        int32_t left = cuts[c] - cuts[c - 1], right = c < cells ? cuts[c + 1] - cuts[c] : 0;
        int32_t least = c < cells ? c : n, most = n - cells + c;
        double next_masses[PLACES], next_moments[PLACES], scores[PLACES], choice[PLACES];
        for (int32_t j = 0; j < PLACES; j++) {
            int32_t step = first + j, move = step * (step < 0 ? left : right) >> level;
            if (step < 0 ? move > step : move < step)
                move = step;
            int32_t place = cuts[c] + move;
            place = place < least ? least : place;
            place = place > most ? most : place;
            places[c][j] = place;
            next_masses[j] = p->mass[place], next_moments[j] = p->moment[place];
            scores[j] = IMPOSSIBLE, choice[j] = 0;
        }
        for (int32_t i = 0; i < PLACES; i++) {
            double mass = masses[i], moment = moments[i], before = best[i], index = i;
/* Unrolled, gcc makes no vectors of it; nor if a branch could go around the division. */
#pragma GCC unroll 1
            for (int32_t j = 0; j < PLACES; j++) {
                double m = next_masses[j] - mass, s = next_moments[j] - moment;
                double score = s * s / m + (m > 0 ? before : IMPOSSIBLE); /* NaN where m is 0 */
                double old_score = scores[j], old_choice = choice[j];
                scores[j] = score > old_score ? score : old_score;
                choice[j] = score > old_score ? index : old_choice;
            }
        }
        memcpy(masses, next_masses, sizeof masses);
        memcpy(moments, next_moments, sizeof moments);
        memcpy(best, scores, sizeof best);
        memcpy(from[c], choice, sizeof choice);
    }
    int moved = 0;
    int32_t j = (int32_t)from[cells][0];
    for (int32_t c = cells - 1; c > 0; c--) {
        moved |= cuts[c] != places[c][j];
        cuts[c] = places[c][j];
        j = (int32_t)from[c][j];
    }
    return moved;
}

INLINED void move_all_cuts(const Palettes *p, int32_t cells, int32_t *cuts)
{
    for (int level = FIRST_LEVEL; level <= LAST_LEVEL; level++) {
        int still = 0; /* passes after one another; both kinds have been then */
        for (int pass = 0; pass < PASSES && still < 2; pass++)
            still = move_cuts(p, cells, cuts, level, pass % 2 - PLACES / 2) ? 0 : still + 1;
        int32_t widest = 0;
        for (int32_t c = 0; c < cells; c++)
            widest = cuts[c + 1] - cuts[c] > widest ? cuts[c + 1] - cuts[c] : widest;
        if (still == 2 && widest <= 1 << level) /* all steps are of one value already */
            return;
    }
}

INLINED uint16_t half_of_key(uint16_t key)
{
    return (uint16_t)(key < ZERO_KEY ? 0x8000 | (ZERO_KEY - key) : key - ZERO_KEY);
}

/* The table for the `n` distinct values that were added, in ascending order. */
INLINED void find_table(Palettes *p, size_t n, unsigned bits, uint16_t *table)
{
    size_t cells = (size_t)1 << bits;
    if (n <= cells) {
        for (size_t c = 0; c < cells; c++)
            table[c] = n ? half_of_key(p->keys[c < n ? c : n - 1]) : 0;
        return;
    }
    int32_t cuts[MOST_CELLS + 1];
    start_cells(p, n, cells, cuts);
    move_all_cuts(p, (int32_t)cells, cuts);
    for (size_t c = 0; c < cells; c++) {
        double mass = p->mass[cuts[c + 1]] - p->mass[cuts[c]];
        double moment = p->moment[cuts[c + 1]] - p->moment[cuts[c]];
        table[c] = half_of_key(key_of(bits_of((float)(moment / mass))));
    }
}

/* Twice the largest value that each of a table is the nearest to. */
INLINED void find_ends(const uint16_t *table, size_t cells, double *ends)
{
    for (size_t c = 0; c < cells; c++) {
        double value = float_of_half(table[c] & 0x7fff);
        ends[c] = table[c] & 0x8000 ? -value : value;
        if (c)
            ends[c - 1] += ends[c];
    }
    ends[cells - 1] = DBL_MAX;
}

typedef struct {
    uint8_t *end;
    uint64_t bits;
    unsigned count;
} Stream;

INLINED void write_indices(const void *values, int is_bf16, size_t count, unsigned bits,
                           const uint8_t *index, Stream *stream)
{
    uint16_t keys[CHUNK];
    Stream s = *stream;
    for (size_t at = 0; at < count; at += CHUNK) {
        size_t size = find_keys(values, is_bf16, at, count, keys);
        for (size_t i = 0; i < size; i++) {
            s.bits |= (uint64_t)index[keys[i]] << s.count;
            for (s.count += bits; s.count >= 8; s.count -= 8, s.bits >>= 8)
                *s.end++ = (uint8_t)s.bits;
        }
    }
    *stream = s;
}

EACH_PROCESSOR int count_halves(const void *values, int is_bf16, size_t rows, size_t columns,
                                const uint32_t *costs, uint64_t *weights)
{
    return is_bf16 ? count_rows(values, 1, rows, columns, costs, weights, NULL)
                   : count_rows(values, 0, rows, columns, costs, weights, NULL);
}

EACH_PROCESSOR void find_palette(const uint64_t *weights, unsigned bits, uint16_t *table,
                                 Palettes *p)
{
    size_t n = 0;
    for (uint32_t key = 0; key < KEYS; key++)
        if (weights[key])
            add_value(p, n++, (uint16_t)key, weights[key]);
    find_table(p, n, bits, table);
}

EACH_PROCESSOR int assign_palette(const void *values, int is_bf16, size_t count, unsigned bits,
                                  const uint16_t *table, uint8_t *packed, Palettes *p)
{
    if (peak_of(values, is_bf16, NULL, count) >= BEYOND_HALF)
        return 0;
    double ends[MOST_CELLS];
    find_ends(table, (size_t)1 << bits, ends);
    uint8_t index = 0;
    for (uint32_t key = ZERO_KEY - 0x7bff; key <= ZERO_KEY + 0x7bff; key++) { /* all finite */
        while (2.0 * value_of((uint16_t)key) > ends[index])
            index++;
        p->index[key] = index;
    }
    Stream stream = {packed, 0, 0};
    write_indices(values, is_bf16, count, bits, p->index, &stream);
    if (stream.count)
        *stream.end = (uint8_t)stream.bits;
    return 1;
}

EACH_PROCESSOR int palettize(const void *values, int is_bf16, size_t groups, size_t rows,
                             size_t columns, unsigned bits, const uint32_t *costs, uint8_t *packed,
                             uint16_t *tables, Palettes *p)
{
    size_t stride = rows * columns * (is_bf16 ? sizeof(uint16_t) : sizeof(float));
    Stream stream = {packed, 0, 0};
    for (const char *group = values; groups--; group += stride, tables += (size_t)1 << bits) {
        int done = is_bf16 ? count_rows(group, 1, rows, columns, costs, p->weights, p->present)
                           : count_rows(group, 0, rows, columns, costs, p->weights, p->present);
        if (!done)
            return 0;
        size_t n = 0;
        for (size_t word = 0; word < KEYS / 64; word++) {
            for (uint64_t left = p->present[word]; left; left &= left - 1) {
                uint16_t key = (uint16_t)(word * 64 + (size_t)__builtin_ctzll(left));
                add_value(p, n++, key, p->weights[key]);
                p->weights[key] = 0;
            }
            p->present[word] = 0;
        }
        find_table(p, n, bits, tables);
        double ends[MOST_CELLS];
        find_ends(tables, (size_t)1 << bits, ends);
        uint8_t index = 0;
        for (size_t i = 0; i < n; i++) {
            while (2.0 * value_of(p->keys[i]) > ends[index])
                index++;
            p->index[p->keys[i]] = index;
        }
        write_indices(group, is_bf16, rows * columns, bits, p->index, &stream);
    }
    if (stream.count)
        *stream.end = (uint8_t)stream.bits;
    return 1;
}

#define ASKED_PAGES 1024 /* at once, whether they are in memory */
#define FEWEST_PAGES 16  /* in a row: smaller pieces are not worth a call of the system */

static int is_zero(const char *page, size_t size)
{
    uint64_t first;
    memcpy(&first, page, sizeof first);
    return !first && !memcmp(page, page + sizeof first, size - sizeof first);
}

size_t give_back_zeros(char *begin, size_t pages, size_t size)
{
    size_t given = 0;
#ifdef __linux__
    unsigned char in_memory[ASKED_PAGES];
    for (size_t count; pages; pages -= count, begin += count * size) {
        count = pages < ASKED_PAGES ? pages : ASKED_PAGES;
        if (mincore(begin, count * size, in_memory))
            break; /* it is there no more */
        size_t run = 0;
        for (size_t i = 0; i <= count; i++) {
            if (i < count && in_memory[i] & 1 && is_zero(begin + i * size, size)) {
                run++;
                continue;
            }
            if (run >= FEWEST_PAGES
                && !madvise(begin + (i - run) * size, run * size, MADV_DONTNEED))
                given += run * size;
            run = 0;
        }
    }
#endif
    return given;
}
