// C text of portable_math.py, for CUDA (nvcc, NVRTC: --fmad=false) and for a C compiler
// (-ffp-contract=off), in which a kernel becomes a loop over its entries.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define FOR_EACH_ENTRY(position, n)                                                     \
    const long long position = (long long)blockIdx.x * blockDim.x + threadIdx.x;        \
    if (position < (n))
#define ATOMIC_MINIMUM(address, value) atomicMin(address, value)
#else
#include <math.h>
#define DEVICE static inline
#define KERNEL void
#define FOR_EACH_ENTRY(position, n) for (long long position = 0; position < (n); ++position)
#define ATOMIC_MINIMUM(address, value) (*(address) = (value) < *(address) ? (value) : *(address))
#endif

typedef long long int64;
typedef unsigned long long uint64;

typedef union {
    double value;
    int64 bits;
} double_bits;

DEVICE int64 bits_of(double value) {
    double_bits both;
    both.value = value;
    return both.bits;
}

DEVICE double double_of(int64 bits) {
    double_bits both;
    both.bits = bits;
    return both.value;
}

DEVICE double power_of_two(int64 exponent) {
    return double_of((int64)((uint64)(exponent + 1023) << 52));
}

DEVICE double portable_exp(double x) {
    x = x > 710.0 ? 710.0 : x;
    x = x < -750.0 ? -750.0 : x;
    const double shifted = x * 1.4426950408889634 + 6755399441055744.0;
    const int64 exponent = (int64)((uint64)bits_of(shifted) - 0x4338000000000000ULL);
    const double whole = shifted - 6755399441055744.0;
    const double r = (x - whole * 0.6931471803691238) - whole * 1.9082149292705877e-10;
    const double r2 = r * r;
    double series = 1.0 / 479001600 + r * (1.0 / 6227020800.0);
    series = (1.0 / 3628800 + r * (1.0 / 39916800)) + r2 * series;
    series = (1.0 / 40320 + r * (1.0 / 362880)) + r2 * series;
    series = (1.0 / 720 + r * (1.0 / 5040)) + r2 * series;
    series = (1.0 / 24 + r * (1.0 / 120)) + r2 * series;
    series = (1.0 / 2 + r * (1.0 / 6)) + r2 * series;
    const double value = 1.0 + (r + r2 * series);
    const int64 half = exponent >> 1;
    return (value * power_of_two(half)) * power_of_two(exponent - half);
}

DEVICE double portable_log(double x) {
    const int subnormal = x < 2.2250738585072014e-308;
    const double scaled = subnormal ? x * 18014398509481984.0 : x;
    const int64 bits = bits_of(scaled);
    const int64 exponent = (int64)((uint64)bits - 0x3FE6A09E667F3BCDULL) >> 52;
    const double f = double_of((int64)((uint64)bits - ((uint64)exponent << 52))) - 1.0;
    const double s = f / (2.0 + f);
    const double z = s * s;
    double series = 2.0 / 21 + z * (2.0 / 23);
    series = 2.0 / 19 + z * series;
    series = 2.0 / 17 + z * series;
    series = 2.0 / 15 + z * series;
    series = 2.0 / 13 + z * series;
    series = 2.0 / 11 + z * series;
    series = 2.0 / 9 + z * series;
    series = 2.0 / 7 + z * series;
    series = 2.0 / 5 + z * series;
    series = z * (2.0 / 3 + z * series);
    const double power = (double)exponent - (subnormal ? 54.0 : 0.0);
    const double value =
        power * 0.6931471803691238 + (f - (s * (f - series) - power * 1.9082149292705877e-10));
    const double infinity = double_of(0x7FF0000000000000LL);
    if (x > 0.0) return x < infinity ? value : x;
    return x == 0.0 ? -infinity : double_of(0x7FF8000000000000LL);
}
