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
	"strconv"
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
			fmt.Fprintf(w, "%-7s %6d instructions, %d local, %s: %s\n", k.arch, k.instructions, k.local, strings.Join(k.telling(), " "), k.name)
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

// is tells whether the mangled name is that of a function called kernel. A name is
// written with its length in front, inside N...E behind those of its namespaces
// (Itanium C++ ABI, 5.1.2).
func is(mangled, kernel string) bool {
	rest, ok := strings.CutPrefix(mangled, "_Z")
	if !ok {
		return mangled == kernel
	}
	rest, nested := strings.CutPrefix(rest, "N")
	last := ""
	for {
		digits := 0
		for digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9' {
			digits++
		}
		n, err := strconv.Atoi(rest[:digits])
		if err != nil || n <= 0 || n > len(rest)-digits {
			return last == kernel
		}
		last, rest = rest[digits:digits+n], rest[digits+n:]
		if !nested {
			return last == kernel // what follows are the parameters
		}
	}
}

// rule says what the code of a kernel, in every instance of its template, must hold.
type rule struct {
	kernel string
	arch   string
	want   []string // opcodes, or their beginnings up to a dot; either of two with a bar
}

// exception lets the instances of a kernel have a few instructions that access local memory.
type exception struct {
	accesses int
	why      string
}

func judge(all []kernel, rules []rule, localAllowed map[string]exception) []string {
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
		for name, e := range localAllowed {
			if is(k.name, name) {
				allowed, used[name] = k.local <= e.accesses, true
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

// telling are the opcodes of k that rules are about.
func (k kernel) telling() []string {
	ops := []string{}
	for op := range k.opcodes {
		switch name, _, _ := strings.Cut(op, "."); name {
		case "IMMA", "HMMA", "IGMMA", "HGMMA", "IDP", "LDSM", "LDGSTS", "UTMALDG", "SYNCS", "WARPGROUP":
			ops = append(ops, op)
		}
	}
	slices.Sort(ops)
	return ops
}

func (k kernel) has(want string) bool {
	for either := range strings.SplitSeq(want, "|") {
		for op := range k.opcodes {
			if op == either || strings.HasPrefix(op, either+".") {
				return true
			}
		}
	}
	return false
}
