/* Reads pages of memory: what translating their addresses costs. page_walks.py compiles this file itself. */
#include <stdint.h>

enum { PAGE = 4096, LINE = 64, AHEAD = 16 };

typedef uint64_t Line __attribute__((vector_size(LINE), aligned(LINE)));

/* Read the pages order[first] to order[last - 1] of memory; return a sum, so that nothing is left out. With `ask`, one
 * line of the page that is 16 later is prefetched for each page, so that its address has been translated by then. */
uint64_t read_pages(const char *memory, const uint32_t *order, int64_t first, int64_t last, int ask) {
    Line even = {0}, odd = {0};
    for (int64_t i = first; i < last; ++i) {
        const char *page = memory + (int64_t)order[i] * PAGE;
        if (ask && i + AHEAD < last) __builtin_prefetch(memory + (int64_t)order[i + AHEAD] * PAGE, 0, 1);
        for (int j = 0; j < PAGE; j += 2 * LINE) {
            even += *(const Line *)(page + j);
            odd += *(const Line *)(page + j + LINE);
        }
    }
    even += odd;
    uint64_t sum = 0;
    for (int j = 0; j < 8; ++j) sum += even[j];
    return sum;
}
