/* The loops that every weight passes through, for `kernels.py`; see there what they compute. */

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

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

/* To the nearest of -8 to 7, ties to even. */
INLINED void to_int4(Lanes *values)
{
    const Lanes most = (Lanes){0} + 7.0f, least = (Lanes){0} - 8.0f;
    choose(values, *values > most, most);
    choose(values, *values < least, least);
    *values = (*values + ROUND) - ROUND;
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

EACH_PROCESSOR void widen_bf16(const uint16_t *values, uint32_t *bits, size_t count)
{
    for (size_t i = 0; i < count; i++)
        bits[i] = bits_at(values, 1, i);
}
