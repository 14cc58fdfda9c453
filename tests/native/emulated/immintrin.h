// The x86 vector instructions that the kernels use, computed by SIMDe (apt-get install libsimde-dev) and below: so that
// the kernels for AVX-VNNI, AVX-512 and AMX can be tested on a CPU without them. Slow; results are those of the CPU.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_NATIVE
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cmath>
#include <cstdint>
#include <cstring>

using __mmask16 = simde__mmask16;
#ifndef _MM_FROUND_NO_EXC
#define _MM_FROUND_NO_EXC 8
#endif

namespace emulated {

template <class To, class From>
inline To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

template <class Element, int count>
struct Lanes {
    Element at[count];
};

// A vector of `count` lanes, each `of` the same lane of `vector`.
template <class To, class ToElement, class FromElement, int count, class From, class Of>
inline To each(const From& vector, Of of) {
    const auto from = bits_as<Lanes<FromElement, count>>(vector);
    Lanes<ToElement, count> to;
    for (int i = 0; i < count; ++i) to.at[i] = of(from.at[i]);
    return bits_as<To>(to);
}

template <int count, class Vector>
inline Vector fma_lanes(const Vector& a, const Vector& b, const Vector& c) {
    const auto x = bits_as<Lanes<float, count>>(a), y = bits_as<Lanes<float, count>>(b);
    auto sum = bits_as<Lanes<float, count>>(c);
    for (int i = 0; i < count; ++i) sum.at[i] = std::fma(x.at[i], y.at[i], sum.at[i]);
    return bits_as<Vector>(sum);
}

}  // namespace emulated

// SIMDe rounds twice in these.
#undef _mm256_fmadd_ps
#undef _mm512_fmadd_ps
inline __m256 _mm256_fmadd_ps(__m256 a, __m256 b, __m256 c) { return emulated::fma_lanes<8>(a, b, c); }
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) { return emulated::fma_lanes<16>(a, b, c); }

// SIMDe 0.7 mistakes the directions. To whole numbers only: half to even (0) or down (1).
#undef _mm512_roundscale_ps
inline __m512 _mm512_roundscale_ps(__m512 a, int how) {
    return emulated::each<__m512, float, float, 16>(a, [how](float x) { return how & 1 ? std::floor(x) : std::nearbyint(x); });
}

inline __m512 _mm512_cvtepi32_ps(__m512i a) {
    return emulated::each<__m512, float, int32_t, 16>(a, [](int32_t x) { return static_cast<float>(x); });
}
inline __m512i _mm512_cvtps_epi32(__m512 a) {
    return emulated::each<__m512i, int32_t, float, 16>(a, [](float x) {
        return x >= -2147483648.0f && x < 2147483648.0f ? static_cast<int32_t>(std::nearbyint(x)) : INT32_MIN;
    });
}
inline __m512i _mm512_cvtepi8_epi32(__m128i a) {
    return emulated::each<__m512i, int32_t, int8_t, 16>(a, [](int8_t x) { return int32_t{x}; });
}
inline __m512i _mm512_cvtepu16_epi32(__m256i a) {
    return emulated::each<__m512i, int32_t, uint16_t, 16>(a, [](uint16_t x) { return int32_t{x}; });
}
inline __m512 _mm512_cvtph_ps(__m256i a) {
    const auto halves = emulated::bits_as<emulated::Lanes<__m128i, 2>>(a);
    return emulated::bits_as<__m512>(emulated::Lanes<__m256, 2>{{_mm256_cvtph_ps(halves.at[0]), _mm256_cvtph_ps(halves.at[1])}});
}
#define _mm512_shuffle_f32x4(a, b, places) \
    _mm512_castsi512_ps(_mm512_shuffle_i32x4(_mm512_castps_si512(a), _mm512_castps_si512(b), places))

inline __m256i _mm256_dpbusd_avx_epi32(__m256i sums, __m256i unsigned_bytes, __m256i signed_bytes) {
    auto total = emulated::bits_as<emulated::Lanes<int32_t, 8>>(sums);
    const auto a = emulated::bits_as<emulated::Lanes<uint8_t, 32>>(unsigned_bytes);
    const auto b = emulated::bits_as<emulated::Lanes<int8_t, 32>>(signed_bytes);
    for (int i = 0; i < 32; ++i) total.at[i / 4] += a.at[i] * b.at[i];
    return emulated::bits_as<__m256i>(total);
}

// AMX: eight tiles of at most 16 rows of 64 bytes in each thread (Intel's manual of the instruction set extensions).
namespace emulated {

struct Tile {
    int rows, row_bytes;
    uint8_t bytes[16][64];
};
inline thread_local Tile tiles[8];

inline void load_config(const void* config) {
    const auto* bytes = static_cast<const uint8_t*>(config);
    for (int i = 0; i < 8; ++i) {
        uint16_t row_bytes;
        std::memcpy(&row_bytes, bytes + 16 + 2 * i, sizeof(row_bytes));
        tiles[i] = {bytes[48 + i], row_bytes, {}};
    }
}
inline void load_tile(int to, const void* from, int64_t stride) {
    Tile& tile = tiles[to];
    std::memset(tile.bytes, 0, sizeof(tile.bytes));
    for (int i = 0; i < tile.rows; ++i)
        std::memcpy(tile.bytes[i], static_cast<const char*>(from) + i * stride, static_cast<size_t>(tile.row_bytes));
}
inline void store_tile(int from, void* to, int64_t stride) {
    for (int i = 0; i < tiles[from].rows; ++i)
        std::memcpy(static_cast<char*>(to) + i * stride, tiles[from].bytes[i], static_cast<size_t>(tiles[from].row_bytes));
}
inline void multiply_tiles(int to, int left, int right) {
    for (int m = 0; m < tiles[to].rows; ++m)
        for (int n = 0; n < tiles[to].row_bytes / 4; ++n) {
            int32_t sum;
            std::memcpy(&sum, tiles[to].bytes[m] + 4 * n, sizeof(sum));
            for (int k = 0; k < tiles[left].row_bytes; ++k)
                sum += static_cast<int8_t>(tiles[left].bytes[m][k]) * static_cast<int8_t>(tiles[right].bytes[k / 4][4 * n + k % 4]);
            std::memcpy(tiles[to].bytes[m] + 4 * n, &sum, sizeof(sum));
        }
}

}  // namespace emulated

#define _tile_loadconfig(config) emulated::load_config(config)
#define _tile_release() static_cast<void>(0)
#define _tile_zero(to) std::memset(emulated::tiles[to].bytes, 0, sizeof(emulated::tiles[to].bytes))
#define _tile_loadd(to, from, stride) emulated::load_tile(to, from, stride)
#define _tile_stored(from, to, stride) emulated::store_tile(from, to, stride)
#define _tile_dpbssd(to, left, right) emulated::multiply_tiles(to, left, right)
