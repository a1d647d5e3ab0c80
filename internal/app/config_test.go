package app

import (
	"errors"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/quant"

	"github.com/spf13/pflag"
)

func TestConfigFile(t *testing.T) {
	for _, c := range []struct {
		name, yaml string
		args       []string
		want       func(*Config) // changes to the defaults
		err        string        // in the error
	}{
		{"empty", "", nil, func(*Config) {}, ""},
		{"comments only", "# nothing\n", nil, func(*Config) {}, ""},
		{"all kinds", "listen: 0.0.0.0:9000\nthreads: 3\nmax-body: 16MiB\ntarget: 20ms\n", nil, func(c *Config) {
			c.Listen, c.Threads, c.MaxBody, c.Target = "0.0.0.0:9000", 3, 16<<20, 20*time.Millisecond
		}, ""},
		{"the command line wins", "threads: 3\nmax-in-flight: 5\n", []string{"--threads", "2"}, func(c *Config) { c.Threads, c.MaxInFlight = 2, 5 }, ""},
		{"unknown", "listen: :1\nlissten: :2\n", nil, nil, `line 2: unknown setting "lissten", expected one of `},
		{"twice", "threads: 1\nthreads: 2\n", nil, nil, "threads"},
		{"the file itself", "config: other.yaml\n", nil, nil, "unknown setting"},
		{"list", "listen: [a, b]\n", nil, nil, "line 1: setting listen has a list"},
		{"not a number", "threads: many\n", nil, nil, "line 1: setting threads"},
		{"not a size", "max-body: 3 potatoes\n", nil, nil, "64MiB"},
		{"not a map", "- listen\n", nil, nil, "name: value"},
		{"broken", "listen: [\n", nil, nil, "line"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "fewbit.yaml")
			if err := os.WriteFile(file, []byte(c.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			got := Defaults()
			fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
			got.Flags(fs)
			fs.String(configFlag, "", "")
			if err := fs.Parse(c.args); err != nil {
				t.Fatal(err)
			}
			err := ReadFile(file, fs)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "\n") {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			want := Defaults()
			c.want(&want)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, %v, want %+v", got, err, want)
			}
		})
	}
	if err := ReadFile(filepath.Join(t.TempDir(), "none.yaml"), nil); err == nil || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("a missing file: %v", err)
	}
}

func TestCheckConfig(t *testing.T) {
	for name, set := range map[string]func(*Config){
		"--listen": func(c *Config) { c.Listen = "" }, "--data-dir": func(c *Config) { c.DataDir = "" },
		"--threads": func(c *Config) { c.Threads = -1 }, "--max-body": func(c *Config) { c.MaxBody = 0 },
		"--max-upload": func(c *Config) { c.MaxUpload = -1 }, "--max-in-flight": func(c *Config) { c.MaxInFlight = 0 }, "--max-runs": func(c *Config) { c.MaxRuns = 0 },
		"--memory-budget": func(c *Config) { c.MemoryBudget = 1 << 20 }, "--pin": func(c *Config) { c.Pin = []string{"ok", "../x"} },
		"--target": func(c *Config) { c.Target = -1 }, "--drain": func(c *Config) { c.Drain = 0 },
		"--tls-key": func(c *Config) { c.TLSCert = "cert.pem" }, "--tls-client-ca": func(c *Config) { c.TLSClientCA = "ca.pem" },
		"--rate-limit": func(c *Config) { c.RateLimit = math.NaN() }, "--rate-burst": func(c *Config) { c.RateBurst = 3 }, "--max-conns": func(c *Config) { c.MaxConns = 0 },
		"--cors-origin": func(c *Config) { c.CORSOrigin = "https://a.example, b.example" },
		"--nats-url":    func(c *Config) { c.NATSURL = "http://user:secret@host" },
	} {
		c := Defaults()
		if err := c.Check(); err != nil {
			t.Fatal(err)
		}
		set(&c)
		if err := c.Check(); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBytes(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "1000": 1000, "64KiB": 64 << 10, "2 MiB": 2 << 20, "16GiB": 16 << 30, "5MB": 5e6, "7B": 7} {
		var b Bytes
		if err := b.Set(s); err != nil || int64(b) != want {
			t.Errorf("%s: %d, %v, want %d", s, b, err, want)
		}
		var again Bytes
		if err := again.Set(b.String()); err != nil || again != b {
			t.Errorf("%s prints as %s", s, b.String())
		}
	}
	for _, s := range []string{"", "-1", "MiB", "1.5MiB", "9223372036854775807KiB", "1XB"} {
		var b Bytes
		if err := b.Set(s); err == nil {
			t.Errorf("%q is %d", s, b)
		}
	}
}

// TestStartErrors: each says in one line what, where and what to do.
func TestStartErrors(t *testing.T) {
	needEngine(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("short\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		set        func(*Config)
	}{
		{"address in use", "--listen", func(c *Config) { c.Listen = taken.Addr().String() }},
		{"data directory is a file", "--data-dir", func(c *Config) { c.DataDir = file }},
		{"keys missing", "--keys", func(c *Config) { c.Keys = file + ".none" }},
		{"keys in clear text", "line 1: is a key in clear text", func(c *Config) { c.Keys = file }},
		{"admin address beyond loopback", "fewbit keys new --role admin", func(c *Config) { c.Listen, c.GRPCListen, c.AdminListen = "127.0.0.1:0", "", "0.0.0.0:0" }},
		{"admin address in use", "--admin-listen", func(c *Config) { c.Listen, c.GRPCListen, c.AdminListen = "127.0.0.1:0", "", taken.Addr().String() }},
		{"certificate missing", "--tls-cert", func(c *Config) { c.TLSCert, c.TLSKey = file+".pem", file+".pem" }},
		{"no certificate", "--tls-cert", func(c *Config) { c.TLSCert, c.TLSKey = file, file }},
		{"audit log in a missing folder", "--audit-log", func(c *Config) { c.AuditLog = file + "/none" }},
		{"no such library", "make deps", func(c *Config) { c.ORTLib = file + ".so" }},
		{"no cluster", "NATS", func(c *Config) { c.NATSURL = "nats://127.0.0.1:1" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := Defaults()
			cfg.DataDir = t.TempDir()
			c.set(&cfg)
			a, err := New(t.Context(), cfg, "test", nil)
			if err == nil {
				err = a.Run(t.Context(), os.Stderr)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want one line with %q", err, c.want)
			}
			// Whatever failed, the directory is free again.
			if cfg.DataDir != file {
				cfg.Access, cfg.ORTLib, cfg.NATSURL = Defaults().Access, "", ""
				a, err := New(t.Context(), cfg, "test", nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestProgress(t *testing.T) {
	for _, w := range []quant.WeightMethod{quant.GPTQ, quant.BRECQ} {
		last := 0.0
		p := overall(phasesOf(w), func(_ string, f float64) {
			if f < last || f > 1 {
				t.Errorf("progress %v after %v", f, last)
			}
			last = f
		})
		for _, ph := range phasesOf(w) {
			for _, f := range []float64{0, 0.5, 1} {
				p(ph.name, f)
			}
		}
		if last != 1 {
			t.Errorf("progress ends at %v", last)
		}
	}
	seen := -1.0
	overall(phases, func(_ string, f float64) { seen = f })("a phase of tomorrow", 0.7)
	if seen != 0 {
		t.Errorf("an unknown phase moves progress to %v", seen)
	}
}

// TestServeTakesNoArguments: a word too many is wrong use, as for fewbit's commands.
func TestServeTakesNoArguments(t *testing.T) {
	cmd := NewServeCommand("serve", "test")
	cmd.AddCommand(NewPeakMemoryCommand())
	cmd.SetArgs([]string{"models"})
	if err := cmd.ExecuteContext(t.Context()); !errors.Is(err, ErrUsage) {
		t.Errorf("got %v", err)
	}
}
