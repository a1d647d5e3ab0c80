// Package capture keeps a sample of the inputs that models are asked with, to
// calibrate on what they really see: a reservoir of rows for each model, within
// limits of share, rate, number, bytes and time, encrypted on disk.
//
// Only tensors are kept, as the model got them: no text, no image, no header of
// a request. Offering a row never waits and never fails.
package capture

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/fewbit/fewbit/internal/tensor"
)

// Errors of this package. Their texts are for clients and hold no path.
var (
	// ErrNoKey: there is no key to encrypt with, so nothing is captured.
	ErrNoKey = errors.New("inputs cannot be captured without a key: start the server with --capture-key FILE, or set " + KeyEnv)
	// ErrKey: the bytes are no key, or not the key that something was sealed with.
	ErrKey = errors.New("bad capture key")
	// ErrSettings: settings out of range.
	ErrSettings = errors.New("bad capture settings")
	// ErrExists: the model has a capture already.
	ErrExists = errors.New("there is a capture")
	// ErrNotFound: the model has none.
	ErrNotFound = errors.New("no capture")
	// ErrEmpty: nothing has been captured yet.
	ErrEmpty = errors.New("nothing captured")
	// ErrFormat: what was read is no captured input, or was changed or cut off.
	ErrFormat = errors.New("bad captured input")
	// ErrRagged: the samples have no common shape.
	ErrRagged = errors.New("captured inputs differ in shape")
	// ErrTooMany: so many captures there are.
	ErrTooMany = errors.New("too many captures")
)

// Limits of a capture.
const (
	MaxSamples = 100_000         // of one model
	MaxBytes   = int64(16 << 30) // on disk, of one model
	// MaxSampleBytes bounds the tensors of one sample; larger rows are left out.
	MaxSampleBytes = 64 << 20
	// MaxModels bounds the captures of a server.
	MaxModels   = 1024
	maxDuration = 365 * 24 * time.Hour
	maxRedacted = 256 // names of inputs and of routes
	maxName     = 512 // bytes of one
)

// Defaults of Settings.
const (
	DefaultSamples   = 512
	DefaultBytes     = int64(64 << 20)
	DefaultPerSecond = 20
	DefaultSeconds   = 3600
	DefaultKeep      = 7 * 24 * 3600
)

// Settings say what is captured and for how long. Zero values are the defaults.
type Settings struct {
	Share      float64 `json:"share,omitempty" doc:"share of the requests that are looked at, above 0 and at most 1; default 1"`
	MaxSamples int     `json:"max_samples,omitempty" doc:"samples kept, of all seen with equal chance; 1 to 100000, default 512"`
	MaxBytes   int64   `json:"max_bytes,omitempty" doc:"bytes on disk; default 67108864, at most 17179869184"`
	PerSecond  float64 `json:"max_per_second,omitempty" doc:"samples taken in a second; default 20"`
	Seconds    float64 `json:"seconds,omitempty" doc:"the capture ends by itself after so long; default 3600, at most a year"`
	Keep       float64 `json:"keep_seconds,omitempty" doc:"samples are deleted so long after the end; default 604800, at most a year"`
	Redact     Redact  `json:"redact,omitzero"`
}

// Redact says what is not kept.
type Redact struct {
	Inputs []string `json:"inputs,omitempty" doc:"inputs of the model whose values are not kept; zeros stand in for them"`
	Routes []string `json:"routes,omitempty" doc:"routes whose requests are not kept: infer, grpc, classify, embeddings, embed, predict, rerank"`
}

// Routes by which inputs reach a model, as Redact names them.
var Routes = []string{"infer", "grpc", "classify", "embeddings", "embed", "predict", "rerank"}

// Defaults are the Settings of a capture of which nothing was said.
func Defaults() Settings {
	return Settings{Share: 1, MaxSamples: DefaultSamples, MaxBytes: DefaultBytes, PerSecond: DefaultPerSecond, Seconds: DefaultSeconds, Keep: DefaultKeep}
}

// WithDefaults returns s with every value set, or ErrSettings.
func (s Settings) WithDefaults() (Settings, error) {
	d := Defaults()
	s.Share, s.PerSecond, s.Seconds, s.Keep = cmp.Or(s.Share, d.Share), cmp.Or(s.PerSecond, d.PerSecond), cmp.Or(s.Seconds, d.Seconds), cmp.Or(s.Keep, d.Keep)
	s.MaxSamples, s.MaxBytes = cmp.Or(s.MaxSamples, d.MaxSamples), cmp.Or(s.MaxBytes, d.MaxBytes)
	return s, s.Check()
}

// Check returns ErrSettings for values outside their bounds; 0 is outside.
func (s Settings) Check() error {
	bad := func(field string, got any, want string) error {
		return fmt.Errorf("%w: field %q is %v, expected %s", ErrSettings, field, got, want)
	}
	in := func(v, hi float64) bool { return v > 0 && v <= hi } // NaN is not
	switch {
	case !in(s.Share, 1):
		return bad("share", s.Share, "more than 0 and at most 1")
	case s.MaxSamples < 1 || s.MaxSamples > MaxSamples:
		return bad("max_samples", s.MaxSamples, fmt.Sprintf("1 to %d", MaxSamples))
	case s.MaxBytes < 1 || s.MaxBytes > MaxBytes:
		return bad("max_bytes", s.MaxBytes, fmt.Sprintf("1 to %d", MaxBytes))
	case !in(s.PerSecond, math.MaxFloat32):
		return bad("max_per_second", s.PerSecond, "more than 0")
	case !in(s.Seconds, maxDuration.Seconds()):
		return bad("seconds", s.Seconds, fmt.Sprintf("more than 0 and at most %.0f", maxDuration.Seconds()))
	case !in(s.Keep, maxDuration.Seconds()):
		return bad("keep_seconds", s.Keep, fmt.Sprintf("more than 0 and at most %.0f", maxDuration.Seconds()))
	case len(s.Redact.Inputs) > maxRedacted || len(s.Redact.Routes) > maxRedacted:
		return bad("redact", "too long", fmt.Sprintf("at most %d names", maxRedacted))
	}
	for _, r := range s.Redact.Routes {
		if !slices.Contains(Routes, r) {
			return bad("redact.routes", fmt.Sprintf("%.40q", r), fmt.Sprintf("some of %v", Routes))
		}
	}
	for _, n := range s.Redact.Inputs {
		if n == "" || len(n) > maxName {
			return bad("redact.inputs", fmt.Sprintf("a name of %d bytes", len(n)), fmt.Sprintf("1 to %d", maxName))
		}
	}
	return nil
}

// State of a capture.
type State string

// The states.
const (
	Running State = "running"
	Stopped State = "stopped"
)

// Status describes a capture.
type Status struct {
	Model    string           `json:"model"`
	State    State            `json:"state" doc:"running or stopped"`
	Reason   string           `json:"reason,omitempty" doc:"why it stopped"`
	Settings Settings         `json:"settings"`
	Started  time.Time        `json:"started"`
	Ends     time.Time        `json:"ends" doc:"when it stops by itself, or stopped"`
	Deletes  time.Time        `json:"deletes" doc:"when its samples are deleted"`
	Samples  int              `json:"samples" doc:"kept now"`
	Bytes    int64            `json:"bytes" doc:"on disk"`
	Seen     int64            `json:"seen" doc:"rows that were looked at: a sample is one row"`
	Skipped  int64            `json:"skipped" doc:"chosen rows that were left out: too many in a second, too large, or of other inputs"`
	Routes   map[string]int64 `json:"routes" doc:"samples taken by route, those replaced since included"`
	Inputs   []Input          `json:"inputs" doc:"what a sample holds"`
}

// Input is one tensor of the samples.
type Input struct {
	Name     string `json:"name"`
	Datatype string `json:"datatype"`
	Redacted bool   `json:"redacted,omitempty" doc:"its values are not kept"`
}

// Sample is one captured row, batch dimension 1.
type Sample struct {
	Time    time.Time
	Route   string
	Version string // of the model
	Feeds   map[string]*tensor.Tensor
}
