package app

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/bare"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/logs"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/rollout/capture"
)

// Config says what a server serves, where it keeps it and within which limits.
// Flags registers a flag for each field; a configuration file holds the same
// settings under the flags' names.
type Config struct {
	Listen string // host:port
	// GRPCListen is host:port for gRPC; "" serves none.
	GRPCListen string
	DataDir    string
	Access
	// CaptureKey is a file with the key of captured inputs; "" is that of the
	// environment (capture.KeyEnv), or none.
	CaptureKey string
	// ORTLib is libonnxruntime or its folder; "" looks for it.
	ORTLib string
	// CPULib is libfewbit_cpu.so or its folder; "" looks for it, "off" does
	// without.
	CPULib string
	// Threads of the pool that all sessions share, jobs' too; 0 is all CPUs.
	Threads int
	// Spin lets these threads wait for each other awake while a model runs.
	Spin bool
	// Device is where models run: DeviceAuto, DeviceCPU or DeviceCUDA.
	Device string
	// NATSURL is a NATS cluster with JetStream; "" runs one inside the process.
	NATSURL     string
	MaxBody     int64 // bytes of an inference request
	MaxUpload   int64 // bytes of a model or a data set
	MaxInFlight int   // requests of one model admitted at a time
	MaxRuns     int   // runs of models at a time, over all of them
	// MemoryBudget bounds the memory of all loaded models together, in bytes; 0
	// is memoryShare of what the process may have.
	MemoryBudget int64
	Pin          []string      // models that are never unloaded to make room
	Lazy         bool          // models that are not pinned wait for their first request
	Target       time.Duration // latency target of models that have none of their own
	Drain        time.Duration // for requests in flight at shutdown
	DrainDelay   time.Duration // before it: `ready` is 503 already, and requests are still taken

	// LogFormat is one of package logs; LogVerbose from 1 on has a line for each
	// request; SlowRequest is from when on an inference has one, 0 for never.
	LogFormat   string
	LogVerbose  int
	SlowRequest time.Duration
	// OTLP is the address of an OpenTelemetry collector, "" for none; OTLPSample
	// the share of the requests without a decision of their own that it gets.
	OTLP       string
	OTLPSample float64
}

// DefaultGRPCListen is where gRPC is served. When it is taken, and was not
// asked for, the server goes without.
const DefaultGRPCListen = "127.0.0.1:8081"

// Values of Config.Device.
const (
	DeviceAuto = "auto"
	DeviceCPU  = "cpu"
	DeviceCUDA = "cuda"
)

// DefaultSlowRequest is from when on an inference has a line in the log.
const DefaultSlowRequest = time.Second

// DefaultDataDir is where the server keeps models, data sets and jobs.
const DefaultDataDir = "fewbit-data"

// Defaults returns the configuration that flags and files start from.
func Defaults() Config {
	return Config{
		Listen: http.DefaultListen, GRPCListen: DefaultGRPCListen, DataDir: DefaultDataDir, Device: DeviceAuto, Spin: true,
		MaxBody: http.MaxInferBody, MaxUpload: http.MaxUpload, MaxInFlight: http.DefaultMaxInFlight, MaxRuns: 1,
		Access: Access{MaxConns: http.DefaultMaxConns},
		Target: http.DefaultTarget, Drain: http.DefaultDrainTimeout,
		LogFormat: logs.FormatDefault, SlowRequest: DefaultSlowRequest, OTLPSample: 1,
	}
}

// Flags registers the settings of c with their present values as defaults.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Listen, "listen", c.Listen, "address to serve on; beyond loopback the admin routes need --keys")
	fs.StringVar(&c.GRPCListen, "grpc-listen", c.GRPCListen, "address for gRPC; empty serves none")
	fs.StringVar(&c.DataDir, "data-dir", c.DataDir, "folder of models, data sets and jobs; one server each")
	c.Access.flags(fs)
	fs.StringVar(&c.CaptureKey, "capture-key", c.CaptureKey, "file with the key that captured inputs are encrypted with, 32 bytes as base64 (default: $"+capture.KeyEnv+"; without one nothing is captured)")
	fs.StringVar(&c.CPULib, "cpu-lib", c.CPULib, "libfewbit_cpu.so, or its folder; off does without (default: $"+ort.EnvKernels+", beside the program)")
	fs.StringVar(&c.ORTLib, "ort-lib", c.ORTLib, "libonnxruntime, or its folder (default: $"+ort.EnvLibrary+", .deps, the system's)")
	fs.IntVar(&c.Threads, "threads", c.Threads, "CPU threads that all models and jobs share (default: all CPUs of the process's control group)")
	fs.BoolVar(&c.Spin, "spin", c.Spin, "let threads wait for each other awake while a model runs: faster, but not where other programs keep the CPUs busy")
	fs.StringVar(&c.Device, "device", c.Device, "where models run and jobs calibrate: auto (the GPU where there is one that can), cpu or cuda; the CPU does whatever the GPU cannot")
	fs.StringVar(&c.NATSURL, "nats-url", c.NATSURL, "NATS cluster for the jobs (default: one inside the process)")
	fs.Var((*Bytes)(&c.MaxBody), "max-body", "largest inference request")
	fs.Var((*Bytes)(&c.MaxUpload), "max-upload", "largest model or data set")
	fs.IntVar(&c.MaxRuns, "max-runs", c.MaxRuns, "runs of models at a time, over all of them: each uses all threads by itself")
	fs.Var((*Bytes)(&c.MemoryBudget), "memory-budget", "memory that all loaded models together may take; the least recently used make room (default: 3/4 of what the control group or the machine allows)")
	fs.StringSliceVar(&c.Pin, "pin", c.Pin, "models that are loaded first and never unloaded to make room, separated by commas")
	fs.BoolVar(&c.Lazy, "lazy", c.Lazy, "load models at their first request instead of at the start; pinned ones are loaded all the same")
	fs.IntVar(&c.MaxInFlight, "max-in-flight", c.MaxInFlight, "requests of one model admitted at a time, more are told to retry")
	fs.DurationVar(&c.Target, "target", c.Target, "latency target of models without one of their own")
	fs.StringVar(&c.LogFormat, "log-format", c.LogFormat, "form of the log's lines: default (text) or json")
	fs.IntVar(&c.LogVerbose, "log-verbose", c.LogVerbose, "1: the log has a line for each request")
	fs.DurationVar(&c.SlowRequest, "slow-request", c.SlowRequest, "inferences that take so long are logged with their phases; 0: none")
	fs.StringVar(&c.OTLP, "otlp", c.OTLP, "OpenTelemetry collector that gets traces, for example http://127.0.0.1:4318 (default: none)")
	fs.Float64Var(&c.OTLPSample, "otlp-sample", c.OTLPSample, "share of the requests that are traced there, 0 to 1, where the client does not decide")
	fs.DurationVar(&c.Drain, "drain", c.Drain, "how long requests in flight may take at shutdown")
	fs.DurationVar(&c.DrainDelay, "drain-delay", c.DrainDelay, "how long readiness says 503 at shutdown before connections are refused, so that a load balancer turns away")
}

// ErrUsage marks settings that cannot be: exit status 2.
var ErrUsage = errors.New("wrong use")

// usageError is an ErrUsage with the text of the error inside.
type usageError struct{ error }

func (usageError) Is(target error) bool { return target == ErrUsage }

// Limits of the settings.
const (
	maxConfigBytes = 1 << 20
	maxInFlight    = 1 << 20
	maxRuns        = 1 << 10
	maxDuration    = time.Hour
	// minMemoryBudget is what the smallest model takes while it is opened.
	minMemoryBudget = 64 << 20
)

// Check returns what is wrong with c, naming the flag: an ErrUsage.
func (c *Config) Check() error {
	bad := func(flag string, got any, want string) error {
		return usageError{fmt.Errorf("--%s is %v, expected %s", flag, got, want)}
	}
	switch {
	case c.Listen == "":
		return bad("listen", `""`, "host:port, for example "+http.DefaultListen)
	case c.DataDir == "":
		return bad("data-dir", `""`, "a folder")
	case c.Threads < 0 || c.Threads > ort.MaxThreads:
		return bad("threads", c.Threads, fmt.Sprintf("0 (all CPUs) to %d", ort.MaxThreads))
	case c.MaxBody < 1:
		return bad("max-body", c.MaxBody, "at least 1 byte")
	case c.MaxUpload < 1:
		return bad("max-upload", c.MaxUpload, "at least 1 byte")
	case c.Device != DeviceAuto && c.Device != DeviceCPU && c.Device != DeviceCUDA:
		return bad("device", c.Device, "auto, cpu or cuda")
	case c.Device == DeviceCUDA && !cuda.Built:
		return bad("device", c.Device, "cpu: this program was built without CUDA; make cuda builds one that has it")
	case c.MaxRuns < 1 || c.MaxRuns > maxRuns:
		return bad("max-runs", c.MaxRuns, fmt.Sprintf("1 to %d", maxRuns))
	case c.MemoryBudget != 0 && c.MemoryBudget < minMemoryBudget:
		return bad("memory-budget", (*Bytes)(&c.MemoryBudget), fmt.Sprintf("0 (by what there is) or at least %d MiB", minMemoryBudget>>20))
	case slices.ContainsFunc(c.Pin, func(name string) bool { return registry.CheckName(name) != nil }):
		return bad("pin", strings.Join(c.Pin, ","), "names of models, separated by commas")
	case c.MaxInFlight < 1 || c.MaxInFlight > maxInFlight:
		return bad("max-in-flight", c.MaxInFlight, fmt.Sprintf("1 to %d", maxInFlight))
	case c.Target <= 0 || c.Target > maxDuration:
		return bad("target", c.Target, fmt.Sprintf("more than 0 and at most %v", maxDuration))
	case c.logSettings().Check() != nil:
		return usageError{fmt.Errorf("--log-format, --log-verbose: %w", c.logSettings().Check())}
	case c.SlowRequest < 0 || c.SlowRequest > maxDuration:
		return bad("slow-request", c.SlowRequest, fmt.Sprintf("0 (none) to %v", maxDuration))
	case !(c.OTLPSample >= 0 && c.OTLPSample <= 1):
		return bad("otlp-sample", c.OTLPSample, "0 to 1")
	case c.DrainDelay < 0 || c.DrainDelay > maxDuration:
		return bad("drain-delay", c.DrainDelay, fmt.Sprintf("0 to %v", maxDuration))
	case c.Drain <= 0 || c.Drain > maxDuration:
		return bad("drain", c.Drain, fmt.Sprintf("more than 0 and at most %v", maxDuration))
	}
	if c.NATSURL != "" {
		if u, err := url.Parse(c.NATSURL); err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			return usageError{errors.New("--nats-url is not a URL such as nats://host:4222")} // not quoted: it may hold a password
		}
	}
	return c.Access.check()
}

// memoryShare of the process's memory is the models' by default; requests, jobs
// and the file cache live from the rest.
const memoryShare = 0.75

// memoryBudget returns the bytes that all models together may take, 0 where the
// system does not tell what there is.
func (c *Config) memoryBudget() int64 {
	if c.MemoryBudget > 0 {
		return c.MemoryBudget
	}
	total, ok := engine.TotalMemory()
	if !ok {
		return 0
	}
	return max(int64(memoryShare*float64(total)), minMemoryBudget)
}

// ReadFile sets the flags that the command line did not, from a YAML file that
// maps their names to values:
//
//	listen: 0.0.0.0:8080
//	max-body: 16MiB
//
// A name that is not a flag, one that is given twice, and anything but plain
// values are errors with the line.
func ReadFile(path string, flags *pflag.FlagSet) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("--config %s: %w", path, bare.Error(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	switch {
	case err != nil:
		return fmt.Errorf("--config %s: %w", path, bare.Error(err))
	case len(b) > maxConfigBytes:
		return fmt.Errorf("--config %s: more than %d bytes", path, maxConfigBytes)
	}
	if err := readYAML(b, flags); err != nil {
		return fmt.Errorf("--config %s: %w", path, err)
	}
	return nil
}

func readYAML(b []byte, flags *pflag.FlagSet) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return errors.New(strings.TrimPrefix(strings.Join(strings.Fields(err.Error()), " "), "yaml: "))
	}
	if doc.Kind == 0 { // empty
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: expected settings as name: value", root.Line)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		flag := flags.Lookup(key.Value)
		switch {
		case flag == nil || key.Value == configFlag || key.Value == "help":
			return fmt.Errorf("line %d: unknown setting %.40q, expected one of %s", key.Line, key.Value, strings.Join(settings(flags), ", "))
		case seen[key.Value]:
			return fmt.Errorf("line %d: setting %s is given twice", key.Line, key.Value)
		case value.Kind != yaml.ScalarNode:
			return fmt.Errorf("line %d: setting %s has a list or a map, expected one value", value.Line, key.Value)
		}
		seen[key.Value] = true
		if flag.Changed { // the command line wins
			continue
		}
		if err := flag.Value.Set(value.Value); err != nil {
			return fmt.Errorf("line %d: setting %s: %w", value.Line, key.Value, err)
		}
	}
	return nil
}

// configFlag names the file; it cannot stand in one.
const configFlag = "config"

func settings(flags *pflag.FlagSet) (names []string) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name != configFlag && f.Name != "help" && !f.Hidden {
			names = append(names, f.Name)
		}
	})
	return names
}

// Bytes is a flag in bytes: 1000, 64KiB, 64MiB, 16GiB, 10MB.
type Bytes int64

var _ pflag.Value = (*Bytes)(nil)

var byteUnits = []struct {
	name string
	size int64
}{
	{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
}

func (*Bytes) Type() string { return "size" }

func (b *Bytes) String() string {
	n := int64(*b)
	for _, u := range byteUnits[:3] {
		if n > 0 && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

func (b *Bytes) Set(s string) error {
	number, size := strings.TrimSpace(s), int64(1)
	for _, u := range byteUnits {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, size = strings.TrimSpace(rest), u.size
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/size {
		return fmt.Errorf("%q is not a size such as 1000000, 64MiB or 16GiB", s)
	}
	*b = Bytes(n * size)
	return nil
}

// logSettings are the log's at the start.
func (c *Config) logSettings() logs.Settings {
	s := logs.Defaults()
	s.Format, s.Verbose = c.LogFormat, c.LogVerbose
	return s
}
