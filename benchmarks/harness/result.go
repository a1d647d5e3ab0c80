package harness

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
)

// Row is one line of the README's table; see benchmarks/common.py.
type Row struct {
	What    string   `json:"what"`
	Ours    string   `json:"ours"`
	Peer    string   `json:"peer"`
	Ratio   *float64 `json:"ratio"`
	Bar     string   `json:"bar"`
	Holds   *bool    `json:"holds"`
	Details any      `json:"details"`
}

// Full reports whether the counts that claims rest on are wanted (make
// bench-full).
func Full() bool { return os.Getenv("FEWBIT_BENCH") == "full" }

// Mode is what results call the counts: "quick" or "full".
func Mode() string {
	if Full() {
		return "full"
	}
	return "quick"
}

// Say tells what was measured while the rest still runs.
func Say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}

// Result collects the rows of one benchmark.
type Result struct {
	name, title, how string
	engine           string
	// LoadBefore is the load average before anything was measured.
	LoadBefore   float64
	busy, stolen float64 // processor time of the machine at the start
	Rows         []Row
	// Command made the result; Facts are what else it found, for plots and pages. Both may be left out.
	Command string
	Facts   any
}

// NewResult begins a result; engineVersion is ONNX Runtime's.
func NewResult(name, title, how, engineVersion string) *Result {
	r := &Result{name: name, title: title, how: how, engine: engineVersion}
	r.LoadBefore = LoadAverage()
	r.busy, r.stolen = cpuTime()
	return r
}

// Add adds a row and says it.
func (r *Result) Add(row Row) {
	r.Rows = append(r.Rows, row)
	verdict := ""
	if row.Holds != nil {
		verdict = map[bool]string{true: "holds", false: "MISSED"}[*row.Holds]
	}
	Say("%s: %s | %s | %s %s", row.What, row.Ours, row.Peer, row.Bar, verdict)
}

// measured leaves out what changes nothing that is measured: results of other benchmarks, and pages made from them.
var measured = []string{"--", ".", ":!benchmarks/results", ":!docs", ":!README.md"}

// Path returns where the result called name goes: folder/NAME.json, or a folder of this
// processor below it where that one is of another; result_path in benchmarks/common.py.
func Path(folder, name string) string { return pathOf(folder, name, processor()) }

func pathOf(folder, name, processor string) string {
	path := filepath.Join(folder, name+".json")
	b, err := os.ReadFile(path)
	if err != nil {
		return path
	}
	var there struct {
		Machine struct {
			Processor string `json:"processor"`
		} `json:"machine"`
	}
	if json.Unmarshal(b, &there) != nil || there.Machine.Processor == processor {
		return path
	}
	return filepath.Join(folder, strings.ReplaceAll(strings.ToLower(processor), " ", "-"), name+".json")
}

// Write writes the result to path, whole or not at all.
func (r *Result) Write(path string) error {
	loadAfter := LoadAverage()
	busy, stolen := cpuTime()
	share := 0.0
	if busy > r.busy {
		share = (stolen - r.stolen) / (busy - r.busy)
	}
	body := map[string]any{
		"name": r.name, "title": r.title, "how": r.how, "mode": Mode(), "rows": r.Rows,
		"machine":  map[string]any{"cores": engine.AvailableCPUs(), "cpu": cpuField("model name"), "processor": processor(), "system": runtime.GOOS + "/" + runtime.GOARCH},
		"versions": map[string]string{"onnxruntime": r.engine, "go": runtime.Version()},
		"commit":   git("rev-parse", "HEAD"), "changed_files": len(strings.Fields(git(append([]string{"status", "--porcelain"}, measured...)...))) / 2,
		"noise": map[string]any{"load1_before": r.LoadBefore, "load1_after": loadAfter, "stolen_share": share},
		"when":  time.Now().UTC().Format(time.RFC3339),
	}
	if r.Command != "" {
		body["command"] = r.Command
	}
	if r.Facts != nil {
		body["facts"] = r.Facts
	}
	b, err := json.MarshalIndent(body, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".part"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// ReadFacts decodes the Facts of the result at path into facts, a pointer.
func ReadFacts(path string, facts any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	r := struct {
		Facts any `json:"facts"`
	}{facts}
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// LoadAverage returns the one-minute load, 0 where the system does not tell.
func LoadAverage() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	var v float64
	_, _ = fmt.Sscan(string(b), &v)
	return v
}

// cpuTime returns the machine's processor time so far, idle time included, and
// what the hypervisor took of it (proc_stat(5): the eighth value).
func cpuTime() (all, stolen float64) {
	b, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	for i, s := range f[min(1, len(f)):] {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || i > 7 {
			break
		}
		all += v
		if i == 7 {
			stolen = v
		}
	}
	return all, stolen
}

// Resident returns the memory of a process in bytes (VmRSS), 0 where the system
// does not tell.
func Resident(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// processor tells generations of processors apart, which names of virtual ones do not.
func processor() string {
	if family := cpuField("cpu family"); family != "" {
		return cpuField("vendor_id") + " family " + family + " model " + cpuField("model")
	}
	return cmp.Or(cpuField("model name"), "another processor")
}

// cpuField returns a field of the first processor in /proc/cpuinfo, "" where it has none.
func cpuField(name string) string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func git(args ...string) string {
	b, err := exec.Command("git", args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
