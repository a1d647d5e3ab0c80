package ort

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/fewbit/fewbit/internal/engine"
)

// EnvLibrary is the environment variable that names the library.
const EnvLibrary = "FEWBIT_ORT_LIB"

// MinVersion is the oldest ONNX Runtime that has the API the shim and
// onnxruntime_go are built on (ORT_API_VERSION 24). Later ones keep it: 1.24 to
// 1.32 were tried.
const MinVersion = "1.24"

const (
	minMajor, minMinor = 1, 24
	// depsLevels is how many folders up from the working directory .deps is
	// looked for, so that tests find the repository's.
	depsLevels = 6
	remedy     = `run "make deps", or set ` + EnvLibrary + " to a libonnxruntime of version " + MinVersion + " or newer"
)

// systemNames are what the dynamic linker is asked for in the end.
var systemNames = []string{"libonnxruntime.so.1", "libonnxruntime.so"}

// FindLibrary returns the library that New loads: explicit (a path, or the
// folder it lies in), else $FEWBIT_ORT_LIB, else the newest
// .deps/ort-*/libonnxruntime.so* beside the executable, above it, or in the
// working directory or a few levels above, else the name under which the
// system's dynamic linker has one. What explicit or the variable name must be
// there. Errors wrap ErrUnavailable and name the remedy.
func FindLibrary(explicit string) (string, error) {
	for _, s := range []struct{ from, path string }{{"the given library", explicit}, {EnvLibrary, os.Getenv(EnvLibrary)}} {
		if s.path == "" {
			continue
		}
		lib, err := libraryAt(s.path)
		if err != nil {
			return "", fmt.Errorf("%w: %s %s: %w; %s", engine.ErrUnavailable, s.from, s.path, err, remedy)
		}
		return lib, nil
	}
	for _, dir := range depsParents() {
		if lib := newest(filepath.Join(dir, ".deps", "ort-*")); lib != "" {
			return lib, nil
		}
	}
	for _, name := range systemNames {
		if canLoad(name) {
			return name, nil
		}
	}
	return "", fmt.Errorf("%w: no ONNX Runtime library found in .deps/ort-* or on the system; %s", engine.ErrUnavailable, remedy)
}

// libraryAt returns the absolute path of the library at p, or in the folder p.
func libraryAt(p string) (string, error) {
	st, err := os.Stat(p)
	if err != nil {
		return "", bare(err)
	}
	if st.IsDir() {
		if p = newest(p); p == "" {
			return "", errors.New("no libonnxruntime.so* in this folder")
		}
	} else if !st.Mode().IsRegular() {
		return "", errors.New("not a regular file")
	}
	return filepath.Abs(p)
}

// depsParents lists the folders whose .deps may hold the library, in order.
func depsParents() []string {
	var dirs []string
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		d := filepath.Dir(exe)
		dirs = append(dirs, d, filepath.Dir(d))
	}
	if wd, err := os.Getwd(); err == nil {
		for range depsLevels {
			dirs = append(dirs, wd)
			wd = filepath.Dir(wd)
		}
	}
	return dirs
}

// newest returns the file libonnxruntime.so* with the highest version in the
// folders that match the pattern, or "".
func newest(dirs string) string {
	files, err := filepath.Glob(filepath.Join(dirs, "libonnxruntime.so*"))
	if err != nil {
		return ""
	}
	files = slices.DeleteFunc(files, func(f string) bool {
		st, err := os.Stat(f)
		return err != nil || !st.Mode().IsRegular()
	})
	if len(files) == 0 {
		return ""
	}
	return slices.MaxFunc(files, func(a, b string) int {
		return cmp.Or(slices.Compare(versionOf(a), versionOf(b)), cmp.Compare(a, b))
	})
}

// versionOf reads the numbers after ".so", or of the folder's name
// ("ort-1.32.0"), from a library's path.
func versionOf(file string) []int {
	_, s, _ := strings.Cut(filepath.Base(file), ".so")
	if s = strings.TrimPrefix(s, "."); s == "" {
		_, s, _ = strings.Cut(filepath.Base(filepath.Dir(file)), "ort-")
	}
	var v []int
	for part := range strings.SplitSeq(s, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			break
		}
		v = append(v, n)
	}
	return v
}

// checkVersion refuses libraries older than MinVersion.
func checkVersion(version, lib string) error {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("%w: %s says its version is %q, expected ONNX Runtime %s or newer; %s",
			engine.ErrUnavailable, lib, version, MinVersion, remedy)
	}
	if cmp.Or(cmp.Compare(major, minMajor), cmp.Compare(minor, minMinor)) < 0 {
		return fmt.Errorf("%w: %s is ONNX Runtime %s, %s or newer is needed; %s",
			engine.ErrUnavailable, lib, version, MinVersion, remedy)
	}
	return nil
}
