package ort

// #include "fewbit_cpu.h"
// #include "shim.h"
// #include <stdlib.h>
import "C"

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"unsafe"

	ortgo "github.com/yalue/onnxruntime_go"

	"github.com/fewbit/fewbit/internal/engine"
)

// EnvKernels is the environment variable that names libfewbit_cpu, its folder,
// or KernelsOff.
const EnvKernels = "FEWBIT_CPU_LIB"

// KernelsOff does without fewbit's own kernels.
const KernelsOff = "off"

const (
	kernelsFile   = "libfewbit_cpu.so"
	kernelsRemedy = `run "make build", or set ` + EnvKernels + " to a " + kernelsFile + ` of this version, or to "off"`
)

// kernelsABI is FEWBIT_CPU_ABI once more. Go's build cache does not see changes
// of a header outside the package: without a change here it would go on with the
// old number, and leave the new library out.
const kernelsABI = 18

// It does not compile when they differ.
var _ = [1]struct{}{}[kernelsABI-C.FEWBIT_CPU_ABI]

// Kernels says which of fewbit's own kernels (cpu/) the sessions of an engine
// can use.
type Kernels struct {
	// Path of the library, "" when there is none; Reason then says why.
	Path, Reason string
	// ABI is the version of functions, layouts and operators: FEWBIT_CPU_ABI.
	ABI int
	// Name of what this processor runs: "amx", "avx512-bf16", "avx512-vnni", "avx2-vnni",
	// "avx2", "arm-i8mm", "arm-dot", or "plain" for portable code that is right and slow.
	Name string
	// BF16: products of floats in BF16 (operator fewbit.MatMulBF16) run in
	// instructions of this processor, and attention is in BF16.
	BF16 bool
	// Int8: so do projections and encoders of the native form (operators
	// fewbit.LinearRows, EncoderAttention and EncoderLayers).
	Int8 bool
	// Int4: they take weights in 4 bits as they are.
	Int4 bool
}

// Kernels returns what is known of fewbit's own kernels.
func (e *Engine) Kernels() Kernels { return e.kernels }

// FindKernels returns the libfewbit_cpu.so that New loads: explicit (a path, or
// the folder it lies in), else $FEWBIT_CPU_LIB, else the one beside the
// executable or beside library, or in bin/ or .deps/ of the working directory or
// of a few levels above; "" when there is none. KernelsOff as explicit or in the
// variable is none. What they name otherwise must be there.
func FindKernels(explicit, library string) (string, error) {
	from, path := "the given library", explicit
	if path == "" {
		from, path = EnvKernels, os.Getenv(EnvKernels)
	}
	switch path {
	case KernelsOff:
		return "", nil
	case "":
	default:
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			path = filepath.Join(path, kernelsFile)
		}
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("%w: %s %s: %w; %s", engine.ErrUnavailable, from, path, bare(err), kernelsRemedy)
		}
		return filepath.Abs(path)
	}
	var dirs []string
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		dirs = append(dirs, filepath.Dir(exe))
	}
	if filepath.IsAbs(library) {
		dirs = append(dirs, filepath.Dir(library))
	}
	for _, d := range depsParents() {
		dirs = append(dirs, filepath.Join(d, "bin"), filepath.Join(d, ".deps"))
	}
	for _, d := range dirs {
		p := filepath.Join(d, kernelsFile)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", nil
}

// loadKernels loads the library where there is one. One that was not asked for
// and does not fit is left out, with the reason in e.kernels.
func (e *Engine) loadKernels(explicit string) error {
	path, err := FindKernels(explicit, e.library)
	if err != nil {
		return err
	}
	if path == "" {
		e.kernels.Reason = "there is no " + kernelsFile + "; " + kernelsRemedy
		if cmp.Or(explicit, os.Getenv(EnvKernels)) == KernelsOff {
			e.kernels.Reason = "they are switched off"
		}
		return nil
	}
	k, err := openKernels(path)
	if err != nil {
		if cmp.Or(explicit, os.Getenv(EnvKernels)) != "" {
			return fmt.Errorf("%w: %s cannot be used: %w; %s", engine.ErrUnavailable, path, err, kernelsRemedy)
		}
		e.kernels.Reason = fmt.Sprintf("%s cannot be used: %v; %s", path, err, kernelsRemedy)
		return nil
	}
	e.kernels = k
	return nil
}

func openKernels(path string) (Kernels, error) {
	const size = 1024
	cp := C.CString(path)
	defer C.free(unsafe.Pointer(cp))
	buf := (*[2][size]C.char)(C.calloc(2, size))
	if buf == nil {
		return Kernels{}, errNoMemory
	}
	defer C.free(unsafe.Pointer(buf))
	var level C.int
	if C.fbort_kernels_load(cp, &level, &buf[0][0], size, &buf[1][0], size) != 0 {
		return Kernels{}, errors.New(oneLine(C.GoString(&buf[1][0])))
	}
	return Kernels{Path: path, ABI: C.FEWBIT_CPU_ABI, Name: C.GoString(&buf[0][0]), Int8: level > C.FEWBIT_CPU_PLAIN, Int4: level >= C.FEWBIT_CPU_AVX512_VNNI, BF16: level >= C.FEWBIT_CPU_AVX512_BF16}, nil
}

// useKernels makes the operators known to the sessions of so.
func (e *Engine) useKernels(so *ortgo.SessionOptions, o engine.Options) error {
	if e.kernels.Path == "" {
		return nil
	}
	p, err := optionsPointer(so)
	if err == nil {
		err = so.AddSessionConfigEntry("fewbit.threads", strconv.Itoa(cmp.Or(o.Threads, e.threads)))
	}
	if err == nil {
		err = status(C.fbort_kernels_register(p))
	}
	if err != nil {
		return fmt.Errorf("%w: the operators of %s: %w", engine.ErrUnavailable, kernelsFile, err)
	}
	return nil
}

// BF16 reports whether sessions can multiply floats in BF16 faster than in
// FP32, and if not, why.
func (e *Engine) BF16() (ok bool, why string) {
	return e.atLeast(e.kernels.BF16, "AVX-512 VNNI and BF16")
}

// Int8 reports whether projections of the native form run in instructions of
// this processor, and if not, why.
func (e *Engine) Int8() (ok bool, why string) {
	return e.atLeast(e.kernels.Int8, "AVX2, or the dot products of Arm")
}

func (e *Engine) atLeast(has bool, needs string) (ok bool, why string) {
	switch {
	case e.kernels.Path == "":
		return false, e.kernels.Reason
	case !has:
		return false, "this needs " + needs + ", the library runs at level " + e.kernels.Name + " on this processor"
	}
	return true, ""
}

// BF16Size returns the size in bytes of a weight [k,n] packed for
// fewbit.MatMulBF16, 0 when it cannot be.
func (e *Engine) BF16Size(k, n int) int {
	return int(C.fbort_bf16_packed_size(C.int64_t(k), C.int64_t(n)))
}

// PackBF16 packs w, [k,n] row by row, into to, which has BF16Size(k, n) bytes,
// on as many threads.
func (e *Engine) PackBF16(w []float32, k, n int, to []byte, threads int) error {
	if size := e.BF16Size(k, n); size == 0 || size != len(to) || len(w) != k*n {
		return fmt.Errorf("%w: a weight [%d,%d] of %d values does not pack into %d bytes", engine.ErrModel, k, n, len(w), len(to))
	}
	inPanels(n, threads, func(first, last C.int64_t) {
		C.fbort_bf16_pack((*C.float)(unsafe.Pointer(unsafe.SliceData(w))), C.int64_t(k), C.int64_t(n), first, last, unsafe.Pointer(unsafe.SliceData(to)))
	})
	return nil
}

// gramPanels is how many panels of a Gram matrix a thread takes at a time.
const gramPanels = 2

// AddGramBF16 adds x'x, where x are rows of k values, rounded to BF16, to the lower
// triangle sum, whose row i has i+1 values, on as many threads. Sums are FP32. packed
// is memory for it, of BF16Size(rows, k) bytes.
func (e *Engine) AddGramBF16(sum, x []float32, k int, packed []byte, threads int) error {
	rows := len(x) / max(k, 1)
	if k < 1 || len(x) != rows*k || len(sum) != k*(k+1)/2 {
		return fmt.Errorf("%w: %d values are not rows of %d, whose products have %d sums", engine.ErrModel, len(x), k, len(sum))
	}
	if err := e.PackBF16(x, rows, k, packed, threads); err != nil {
		return err
	}
	// The last rows of a triangle are the longest: they go first.
	panels := (k + C.FEWBIT_CPU_PANEL - 1) / C.FEWBIT_CPU_PANEL
	var next atomic.Int64
	var wg sync.WaitGroup
	for range max(1, min(threads, panels)) {
		wg.Go(func() {
			for {
				last := panels - int(next.Add(gramPanels)) + gramPanels
				if last <= 0 {
					return
				}
				first := max(0, last-gramPanels)
				C.fbort_bf16_gram(unsafe.Pointer(unsafe.SliceData(packed)), C.int64_t(rows), C.int64_t(k), C.int64_t(first*C.FEWBIT_CPU_PANEL), C.int64_t(min(k, last*C.FEWBIT_CPU_PANEL)), (*C.float)(unsafe.Pointer(unsafe.SliceData(sum))))
			}
		})
	}
	wg.Wait()
	return nil
}

// An order of rows is handed over as it is.
var _ = [1]struct{}{}[unsafe.Sizeof(0)-unsafe.Sizeof(C.int64_t(0))]

// RoundStrip rounds columns from to to of len(order) rows one after the other, as
// fewbit_cpu.h says: rows order of w and codes, rows of n values, by m, whose rows are k
// values apart. carried may be nil. False, and nothing done: not on this processor, or
// what does not fit together.
func (e *Engine) RoundStrip(m []float32, k int, order []int, w, carried, scales []float32, n, from, to int, lo, hi float32, d []float32, codes []int8) bool {
	rows := len(order)
	bad := C.fbort_solves() == 0 || rows < 1 || rows > C.FEWBIT_CPU_SOLVE_ROWS || k < rows || n < 1 || from < 0 || to < from || to > n || len(scales) != n ||
		len(m) < (rows-1)*k+rows || len(d) < rows*n || len(codes) != len(w) || carried != nil && len(carried) != rows*n
	for _, i := range order {
		bad = bad || i < 0 || i >= len(w)/n
	}
	if bad {
		return false
	}
	C.fbort_round_strip((*C.float)(unsafe.SliceData(m)), C.int64_t(k), (*C.int64_t)(unsafe.Pointer(unsafe.SliceData(order))), C.int64_t(rows),
		(*C.float)(unsafe.SliceData(w)), (*C.float)(unsafe.SliceData(carried)), (*C.float)(unsafe.SliceData(scales)), C.int64_t(n), C.int64_t(from), C.int64_t(to),
		C.float(lo), C.float(hi), (*C.float)(unsafe.SliceData(d)), (*C.int8_t)(unsafe.SliceData(codes)))
	return true
}

// ClipScales replaces the scales of columns from to to of w, rows of n values, by the
// best of their shares, as fewbit_cpu.h says. False as of RoundStrip.
func (e *Engine) ClipScales(w []float32, n, from, to int, importance, shares []float32, top float32, scales []float32) bool {
	k := len(importance)
	if C.fbort_solves() == 0 || k < 1 || n < 1 || len(w) != k*n || from < 0 || to < from || to > n || len(scales) != n || len(shares) < 1 {
		return false
	}
	scratch := make([]float32, 16*k)
	C.fbort_clip_scales((*C.float)(unsafe.SliceData(w)), C.int64_t(k), C.int64_t(n), C.int64_t(from), C.int64_t(to), (*C.float)(unsafe.SliceData(importance)),
		(*C.float)(unsafe.SliceData(shares)), C.int64_t(len(shares)), C.float(top), (*C.float)(unsafe.SliceData(scratch)), (*C.float)(unsafe.SliceData(scales)))
	return true
}

// Int8Size returns the size in bytes of an INT8 weight [k,n] packed for
// fewbit.LinearRows, 0 when it cannot be.
func (e *Engine) Int8Size(k, n int) int {
	return int(C.fbort_int8_packed_size(C.int64_t(k), C.int64_t(n)))
}

// PackInt8 packs w, [k,n] row by row with one scale a column, into to, which has
// Int8Size(k, n) bytes, on as many threads.
func (e *Engine) PackInt8(w []int8, scales []float32, k, n int, to []byte, threads int) error {
	if size := e.Int8Size(k, n); size == 0 || size != len(to) || len(w) != k*n || len(scales) != n {
		return fmt.Errorf("%w: a weight [%d,%d] of %d values with %d scales does not pack into %d bytes", engine.ErrModel, k, n, len(w), len(scales), len(to))
	}
	inPanels(n, threads, func(first, last C.int64_t) {
		C.fbort_int8_pack((*C.int8_t)(unsafe.Pointer(unsafe.SliceData(w))), (*C.float)(unsafe.Pointer(unsafe.SliceData(scales))),
			C.int64_t(k), C.int64_t(n), first, last, unsafe.Pointer(unsafe.SliceData(to)))
	})
	return nil
}

// Int4Size returns the size in bytes of a weight [k,n] in 4 bits packed for
// fewbit.LinearRows, 0 when it cannot be: k has to be a multiple of ops.BlockRows.
func (e *Engine) Int4Size(k, n int) int {
	return int(C.fbort_int4_packed_size(C.int64_t(k), C.int64_t(n)))
}

// PackInt4 packs the operands of ExpandBlocks, codes [k/32,16,n] and steps [k/32,n],
// with one scale a column, into to, which has Int4Size(k, n) bytes, on as many
// threads.
func (e *Engine) PackInt4(codes []uint8, steps []int8, scales []float32, k, n int, to []byte, threads int) error {
	if size := e.Int4Size(k, n); size == 0 || size != len(to) || len(codes) != k/2*n || len(steps) != k/C.FEWBIT_CPU_INT4_BLOCK*n || len(scales) != n {
		return fmt.Errorf("%w: a weight [%d,%d] of %d bytes of codes and %d steps with %d scales does not pack into %d bytes", engine.ErrModel, k, n, len(codes), len(steps), len(scales), len(to))
	}
	inPanels(n, threads, func(first, last C.int64_t) {
		C.fbort_int4_pack((*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(codes))), (*C.int8_t)(unsafe.Pointer(unsafe.SliceData(steps))), (*C.float)(unsafe.Pointer(unsafe.SliceData(scales))),
			C.int64_t(k), C.int64_t(n), first, last, unsafe.Pointer(unsafe.SliceData(to)))
	})
	return nil
}

// inPanels calls f for ranges of the n columns that begin at a panel, on as many
// threads.
func inPanels(n, threads int, f func(first, last C.int64_t)) {
	panels := (n + C.FEWBIT_CPU_PANEL - 1) / C.FEWBIT_CPU_PANEL
	threads = max(1, min(threads, panels))
	var wg sync.WaitGroup
	for t := range threads {
		first, last := panels*t/threads*C.FEWBIT_CPU_PANEL, min(n, panels*(t+1)/threads*C.FEWBIT_CPU_PANEL)
		wg.Go(func() { f(C.int64_t(first), C.int64_t(last)) })
	}
	wg.Wait()
}
