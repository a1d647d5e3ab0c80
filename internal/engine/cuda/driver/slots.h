/* slots.h: the table behind the trampolines. */
#ifndef FEWBIT_SLOTS_H
#define FEWBIT_SLOTS_H
#ifdef __cplusplus
extern "C" {
#endif

/* Sets every function's slot to what find returns for its name, or, where that is
 * NULL, to a function that answers `missing`. */
void fewbit_fill_slots(void *(*find)(void *from, const char *name), void *from, int missing);

/* Gets the driver ready: 0, a CUresult of cuInit, or FEWBIT_NO_LIBRARY with the
 * loader's words in text. May be called again after a failure; callers take turns. */
enum { FEWBIT_NO_LIBRARY = -1 };
int fewbit_load_driver(char *text, unsigned long bytes);

#ifdef __cplusplus
}
#endif
#endif
