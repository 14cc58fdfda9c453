#include "cpu.h"

#include <cstdint>

#include "target.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mixq {

#if defined(__x86_64__) || defined(_M_X64)

namespace {

struct Registers {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
    Registers r;
    if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
    return r;
}

// The register states that the operating system saves (XCR0). Written as bytes: `_xgetbv` needs a target attribute.
uint64_t saved_states() {
    uint32_t low, high;
    __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

bool all(uint64_t word, uint64_t bits) { return (word & bits) == bits; }

constexpr uint32_t bit(int n) { return uint32_t{1} << n; }

// Bits after the Intel software developer's manual, volume 2, CPUID, and volume 1, chapter 13 (XCR0).
constexpr uint64_t kYmmStates = 0x6, kZmmStates = 0xe6, kTileStates = 0x60000;

// Linux saves the tile registers of a process only after this request; other systems are not asked.
bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

MixqIsa detect() {
#if MIXQ_EMULATED
    return MIXQ_ISA_AMX;
#endif
    const Registers one = cpuid(1, 0);
    if (!all(one.ecx, bit(12) | bit(27) | bit(28) | bit(29))) return MIXQ_ISA_PORTABLE;  // FMA, OSXSAVE, AVX, F16C
    const uint64_t saved = saved_states();
    const Registers seven = cpuid(7, 0), more = cpuid(7, 1);
    if (!all(saved, kYmmStates) || !all(seven.ebx, bit(5))) return MIXQ_ISA_PORTABLE;  // AVX2
    const bool avx512 = all(saved, kZmmStates) && all(seven.ebx, bit(16) | bit(17) | bit(30) | bit(31)) &&  // F DQ BW VL
                        all(seven.ecx, bit(11));                                                            // VNNI
    const bool amx = all(saved, kTileStates) && all(seven.edx, bit(24) | bit(25));  // AMX-TILE, AMX-INT8
    if (avx512) return amx && may_use_tiles() ? MIXQ_ISA_AMX : MIXQ_ISA_AVX512;
    return all(more.eax, bit(4)) ? MIXQ_ISA_AVX_VNNI : MIXQ_ISA_AVX2;
}

}  // namespace

MixqIsa best_isa() {
    static const MixqIsa isa = detect();
    return isa;
}

bool supports(int isa) {
    if (isa == MIXQ_ISA_AVX_VNNI && !MIXQ_EMULATED) return best_isa() >= MIXQ_ISA_AVX2 && all(cpuid(7, 1).eax, bit(4));
    return isa >= MIXQ_ISA_PORTABLE && isa <= best_isa();
}

bool has_bf16() { return !MIXQ_EMULATED && best_isa() >= MIXQ_ISA_AVX512 && all(cpuid(7, 1).eax, bit(5)); }

#else

MixqIsa best_isa() {
#if defined(__aarch64__) && defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? MIXQ_ISA_NEON : MIXQ_ISA_PORTABLE;
#elif defined(__aarch64__) && defined(__APPLE__)
    return MIXQ_ISA_NEON;  // every Apple M has dot products
#else
    return MIXQ_ISA_PORTABLE;
#endif
}

bool supports(int isa) { return isa == MIXQ_ISA_PORTABLE || isa == best_isa(); }

bool has_bf16() { return false; }

#endif

}  // namespace mixq
