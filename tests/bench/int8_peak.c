/* How many int8 products a core adds up per second, with nothing to load: the limit of an integer matrix product.
 *
 * Each function runs its loop n times on registers and returns the operations done (a product and its addition are two).
 * peers compiles this file itself, see int8_peak.py.
 */
#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

volatile int kept;

/* 16 sums hide the latency of an instruction; each takes one instruction per 64 products. */
__attribute__((target("avx512f,avx512vnni"))) int64_t peak_avx512_vnni(int64_t n) {
    const __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8((char)n);
    __m512i s[16];
    for (int i = 0; i < 16; ++i) s[i] = _mm512_setzero_si512();
    for (int64_t j = 0; j < n; ++j)
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) s[i] = _mm512_dpbusd_epi32(s[i], a, b);
    for (int i = 1; i < 16; ++i) s[0] = _mm512_add_epi32(s[0], s[i]);
    kept = _mm512_reduce_add_epi32(s[0]);
    return n * 16 * 64 * 2;
}

__attribute__((target("avx2,avxvnni"))) int64_t peak_avx_vnni(int64_t n) {
    const __m256i a = _mm256_set1_epi8(1), b = _mm256_set1_epi8((char)n);
    __m256i s[12];
    for (int i = 0; i < 12; ++i) s[i] = _mm256_setzero_si256();
    for (int64_t j = 0; j < n; ++j)
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) s[i] = _mm256_dpbusd_avx_epi32(s[i], a, b);
    for (int i = 1; i < 12; ++i) s[0] = _mm256_add_epi32(s[0], s[i]);
    kept = _mm256_extract_epi32(s[0], 0);
    return n * 12 * 32 * 2;
}

/* Without dot products: multiply into 16-bit pairs, add these into 32 bits, add to the sum. */
__attribute__((target("avx2"))) int64_t peak_avx2(int64_t n) {
    __m256i a = _mm256_set1_epi8(1);
    const __m256i b = _mm256_set1_epi8((char)n), ones = _mm256_set1_epi16(1);
    __m256i s[8];
    for (int i = 0; i < 8; ++i) s[i] = _mm256_setzero_si256();
    for (int64_t j = 0; j < n; ++j)
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            __asm__ volatile("" : "+x"(a)); /* or the product would be computed once */
            s[i] = _mm256_add_epi32(s[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
        }
    for (int i = 1; i < 8; ++i) s[0] = _mm256_add_epi32(s[0], s[i]);
    kept = _mm256_extract_epi32(s[0], 0);
    return n * 8 * 32 * 2;
}

/* Tiles of 16 rows of 64 bytes, as BLIS-like kernels use them: two of each operand, four sums. 0: not allowed. */
__attribute__((target("amx-tile,amx-int8"))) int64_t peak_amx_int8(int64_t n) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)) return 0;
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((aligned(64))) config = {.palette = 1};
    for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = 16;
    __asm__ volatile("" : : "r"(&config) : "memory"); /* gcc 12 does not know that the next line reads it */
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t j = 0; j < n; ++j) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
    return n * 4 * 16 * 16 * 64 * 2;
}
