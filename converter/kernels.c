/* The two loops that every weight passes through, for `kernels.py`; see there what they compute. */

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

#define INFINITY_BITS 0x7f800000u
/* Adding it leaves no bits for a fraction: the sum is rounded to nearest, ties to even, and its
   lowest byte is the integer in two's complement. */
#define ROUND 12582912.0f

EACH_PROCESSOR void widen_bf16(const uint16_t *stored, uint32_t *bits, size_t count)
{
    for (size_t i = 0; i < count; i++)
        bits[i] = (uint32_t)stored[i] << 16;
}

EACH_PROCESSOR int pack_int8(const float *values, size_t rows, size_t columns, int8_t *packed,
                             float *scales)
{
    for (size_t r = 0; r < rows; r++, values += columns, packed += columns) {
        uint32_t peak_bits = 0; /* without their sign, floats are ordered as their bits are */
        for (size_t i = 0; i < columns; i++) {
            uint32_t bits;
            memcpy(&bits, &values[i], sizeof bits);
            bits &= 0x7fffffffu;
            peak_bits = bits > peak_bits ? bits : peak_bits;
        }
        if (peak_bits >= INFINITY_BITS)
            return 0;
        float peak;
        memcpy(&peak, &peak_bits, sizeof peak);
        float scale = peak / 127.0f;
        if (scale < FLT_MIN)
            scale = FLT_MIN;
        float inverse = 1.0f / scale;
        for (size_t i = 0; i < columns; i++) {
            float rounded = values[i] * inverse + ROUND;
            uint32_t bits;
            memcpy(&bits, &rounded, sizeof bits);
            packed[i] = (int8_t)(uint8_t)bits;
        }
        scales[r] = scale;
    }
    return 1;
}
