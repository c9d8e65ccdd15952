/* The loops that every weight passes through, for `kernels.py`; see there what they compute. */

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__)
/* Compiled twice; the faster one that the processor has is chosen when the library is loaded. */
#define EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define EACH_PROCESSOR
#endif
#define INLINED static inline __attribute__((always_inline))

#define INFINITY_BITS 0x7f800000u
/* Adding it leaves no bits for a fraction: the sum is rounded to nearest, ties to even, and its
   lowest byte is the integer in two's complement. */
#define ROUND 12582912.0f

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

INLINED int pack_row(const void *values, int is_bf16, size_t columns, int8_t *packed, float *scale)
{
    uint32_t peak = 0; /* without their sign, floats are ordered as their bits are */
    for (size_t i = 0; i < columns; i++) {
        uint32_t bits = bits_at(values, is_bf16, i) & 0x7fffffffu;
        peak = bits > peak ? bits : peak;
    }
    if (peak >= INFINITY_BITS)
        return 0;
    *scale = float_of(peak) / 127.0f;
    if (*scale < FLT_MIN)
        *scale = FLT_MIN;
    float inverse = 1.0f / *scale;
    for (size_t i = 0; i < columns; i++)
        packed[i] = (int8_t)(uint8_t)bits_of(float_of(bits_at(values, is_bf16, i)) * inverse + ROUND);
    return 1;
}

EACH_PROCESSOR int pack_int8_float32(const float *values, size_t rows, size_t columns,
                                     int8_t *packed, float *scales)
{
    for (size_t r = 0; r < rows; r++)
        if (!pack_row(values + r * columns, 0, columns, packed + r * columns, scales + r))
            return 0;
    return 1;
}

EACH_PROCESSOR int pack_int8_bf16(const uint16_t *values, size_t rows, size_t columns,
                                  int8_t *packed, float *scales)
{
    for (size_t r = 0; r < rows; r++)
        if (!pack_row(values + r * columns, 1, columns, packed + r * columns, scales + r))
            return 0;
    return 1;
}

EACH_PROCESSOR void widen_bf16(const uint16_t *values, uint32_t *bits, size_t count)
{
    for (size_t i = 0; i < count; i++)
        bits[i] = bits_at(values, 1, i);
}
