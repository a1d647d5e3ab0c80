// Command cudacheck reads the machine code of the compiled kernels and fails
// where it is not what their authors meant: a kernel that keeps values in local
// memory (it ran out of registers, or indexes an array by a variable), or a matrix
// product without the tensor core and copy instructions it was written for.
//
//	cudacheck [-archive build/cuda/libfewbit_cuda.a] [-cuobjdump PATH] [-v]
//
// cuobjdump is taken from PATH, then from the fetched toolkit. What is expected
// of which kernel is the table in rules.go.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
)

func main() {
	archive := flag.String("archive", "build/cuda/libfewbit_cuda.a", "the compiled kernels")
	program := flag.String("cuobjdump", "", "cuobjdump (default: on PATH, then the fetched one)")
	verbose := flag.Bool("v", false, "print every kernel")
	flag.Parse()
	if err := run(*archive, *program, *verbose, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cudacheck:", err)
		os.Exit(1)
	}
}

func run(archive, program string, verbose bool, w io.Writer) error {
	if _, err := os.Stat(archive); err != nil {
		return fmt.Errorf("%w; run make cuda", err)
	}
	program, err := find(program)
	if err != nil {
		return err
	}
	var all []kernel
	for _, arch := range architectures {
		some, err := disassemble(program, archive, arch)
		if err != nil {
			return err
		}
		if len(some) == 0 {
			return fmt.Errorf("%s holds no code for %s", archive, arch)
		}
		all = append(all, some...)
	}
	if verbose {
		for _, k := range all {
			fmt.Fprintf(w, "%-7s %6d instructions, %d local: %s\n", k.arch, k.instructions, k.local, k.name)
		}
	}
	problems := judge(all, rules, localAllowed)
	for _, p := range problems {
		fmt.Fprintln(w, p)
	}
	if len(problems) > 0 {
		return fmt.Errorf("%d problems in %d kernels", len(problems), len(all))
	}
	fmt.Fprintf(w, "machine code: %d kernels, %d rules, as expected\n", len(all), len(rules))
	return nil
}

// find returns cuobjdump, with nvdisasm, which it calls, on PATH.
func find(program string) (string, error) {
	if program == "" {
		p, err := exec.LookPath("cuobjdump")
		if err != nil {
			deps := os.Getenv("FEWBIT_DEPS")
			if deps == "" {
				deps = ".deps"
			}
			p = filepath.Join(deps, "cuda-toolkit", "bin", "cuobjdump")
		}
		program = p
	}
	program, err := filepath.Abs(program)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("%w; run python3 tools/fetch/fetch.py cuda", err)
	}
	return program, os.Setenv("PATH", filepath.Dir(program)+string(filepath.ListSeparator)+os.Getenv("PATH"))
}

// kernel is one function's code for one architecture.
type kernel struct {
	arch, name   string          // name as the compiler mangled it
	opcodes      map[string]bool // with modifiers: "IMMA.16832.S8.S8"
	instructions int
	local        int // reads and writes of local memory
}

func disassemble(program, archive, arch string) ([]kernel, error) {
	cmd := exec.Command(program, "-sass", "-arch", arch, archive)
	var words strings.Builder
	cmd.Stderr = &words
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	some, err := parse(out, arch)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(program), err, strings.TrimSpace(words.String()))
	}
	return some, nil
}

var instruction = regexp.MustCompile(`^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)`)

// parse reads what cuobjdump -sass prints for one architecture.
func parse(r io.Reader, arch string) ([]kernel, error) {
	var all []kernel
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := s.Text()
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Function : "); ok {
			all = append(all, kernel{arch: arch, name: name, opcodes: map[string]bool{}})
			continue
		}
		m := instruction.FindStringSubmatch(line)
		if m == nil || len(all) == 0 {
			continue
		}
		k := &all[len(all)-1]
		k.opcodes[m[1]] = true
		k.instructions++
		if op, _, _ := strings.Cut(m[1], "."); op == "LDL" || op == "STL" {
			k.local++
		}
	}
	return all, s.Err()
}

// is tells whether the mangled name is that of a function called kernel: names
// are written with their length in front (Itanium C++ ABI, 5.1.2).
func is(mangled, kernel string) bool {
	part := fmt.Sprintf("%d%s", len(kernel), kernel)
	for i := strings.Index(mangled, part); i >= 0; {
		if i == 0 || mangled[i-1] < '0' || mangled[i-1] > '9' {
			return true
		}
		next := strings.Index(mangled[i+1:], part)
		if next < 0 {
			return false
		}
		i += 1 + next
	}
	return false
}

// rule says what the code of a kernel, in every instance of its template, must hold.
type rule struct {
	kernel string
	arch   string
	want   []string // opcodes, or their beginnings up to a dot
}

func judge(all []kernel, rules []rule, localAllowed map[string]string) []string {
	var problems []string
	for _, r := range rules {
		found := false
		for _, k := range all {
			if k.arch != r.arch || !is(k.name, r.kernel) {
				continue
			}
			found = true
			for _, want := range r.want {
				if !k.has(want) {
					problems = append(problems, fmt.Sprintf("%s: no %s in %s", k.arch, want, k.name))
				}
			}
		}
		if !found {
			problems = append(problems, fmt.Sprintf("%s: there is no kernel %s", r.arch, r.kernel))
		}
	}
	used := map[string]bool{}
	for _, k := range all {
		if k.local == 0 {
			continue
		}
		allowed := false
		for name := range localAllowed {
			if is(k.name, name) {
				allowed, used[name] = true, true
			}
		}
		if !allowed {
			problems = append(problems, fmt.Sprintf("%s: %d accesses to local memory in %s", k.arch, k.local, k.name))
		}
	}
	for name := range localAllowed {
		if !used[name] {
			problems = append(problems, fmt.Sprintf("no kernel %s uses local memory: take it off the list", name))
		}
	}
	sort.Strings(problems)
	return slices.Compact(problems)
}

func (k kernel) has(want string) bool {
	for op := range k.opcodes {
		if op == want || strings.HasPrefix(op, want+".") {
			return true
		}
	}
	return false
}
