/* emulate_api.h: how tests and the fake driver steer the emulated device. */
#ifndef FB_EMULATE_API_H
#define FB_EMULATE_API_H
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif

/* seed 0 runs threads in order; others shuffle lanes, warps and blocks, and (odd
 * ones) let asynchronous copies land at once. 1 and 2 preempt warps, later ones let
 * them run on as far as they can, and keep grids small, so that blocks do more than
 * one item of work. sm is what fb_device reports. For all launches of the process
 * from now on. */
void fb_emu_configure(unsigned seed, int sm);
int fb_emu_sm(void);

/* Leaves out the barrier (__syncthreads, __syncwarp, fb_cp_wait) in this line of
 * this source, named without folders; line 0: none. Tests have to notice. */
void fb_emu_leave_out(const char *file, int line);

/* What the last failed launch or damaged allocation was. */
void fb_emu_message(char *text, size_t bytes);

/* Asked before each launch, in the launching thread: FB_EMU_RUN runs it now,
 * FB_EMU_TAKEN leaves it to the hook (a stream capture keeps it and calls
 * fb_emu_run, any number of times, then fb_emu_drop), anything else is the CUDA
 * error that the launch then has. */
enum { FB_EMU_RUN = 0, FB_EMU_TAKEN = -1 };
typedef int (*fb_emu_hook)(void *user, void *stream, void *launch);
void fb_emu_set_hook(fb_emu_hook hook, void *user);
void fb_emu_run(void *launch);
int fb_emu_last_error(void); /* of this thread's launches; clears it */
void fb_emu_drop(void *launch);

/* Guarded device memory: 16-aligned, poisoned; free says 700 where the bytes
 * around it were written. */
void *fb_emu_alloc(size_t bytes);
int fb_emu_free(void *p);

#ifdef __cplusplus
}
#endif
#endif
