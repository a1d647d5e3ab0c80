package external

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/calib"
)

// behave is what the program does that TestMain makes of this test.
const behave = "FEWBIT_TEST_CALIBRATOR"

func TestMain(m *testing.M) {
	how := os.Getenv(behave)
	if how == "" {
		os.Exit(m.Run())
	}
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	greet := func() {
		in.ReadString('\n')
		fmt.Println(`{"calibrator":"` + Protocol + `"}`)
	}
	switch how {
	case "silent":
		time.Sleep(time.Hour)
	case "deaf":
		greet()
		time.Sleep(time.Hour)
	case "dead":
		os.Exit(3)
	case "rubbish":
		fmt.Println("\x1b[2Jhello")
	case "other":
		fmt.Println(`{"calibrator":"fewbit.calibrator/9"}`)
	case "flood":
		greet()
		for {
			fmt.Print(strings.Repeat("x", 1<<16))
		}
	case "dies":
		greet()
		in.ReadString('\n')
		fmt.Fprintln(os.Stderr, "first line\nout of luck")
		os.Exit(4)
	case "child": // which keeps the output open
		greet()
		in.ReadString('\n')
		c := exec.Command("sleep", "60")
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		_ = c.Start()
		os.Exit(5)
	default: // gives this answer to each question, with the right id
		greet()
		for id := 0; ; id++ {
			if _, err := in.ReadString('\n'); err != nil {
				return
			}
			fmt.Println(strings.ReplaceAll(how, "ID", fmt.Sprint(id+1)))
		}
	}
	os.Exit(0)
}

func start(t *testing.T, how string) (*Process, error) {
	t.Helper()
	t.Setenv(behave, how)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	timeout := 5 * time.Second
	if how == "silent" || how == "deaf" {
		timeout = 300 * time.Millisecond
	}
	return Start(context.Background(), []string{exe}, timeout)
}

func histogram() *calib.Histogram {
	h := &calib.Histogram{}
	x := make([]float32, 4000)
	for i := range x {
		x[i] = float32(i-1000) / 1000 // -1 to 3
	}
	h.Observe(x)
	return h
}

func TestAnswers(t *testing.T) {
	for how, want := range map[string]calib.Range{
		`{"id":ID,"lo":-0.5,"hi":2}`:                 {Lo: -0.5, Hi: 2},
		`{"id":ID,"lo":-9e300,"hi":1e300}`:           {Lo: -1, Hi: 2.999}, // cut to what was seen
		`{"id":ID,"lo":1,"hi":2,"why":"my reasons"}`: {Lo: 0, Hi: 2},      // extended to zero
	} {
		p, err := start(t, how)
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		for range 3 {
			if r, err := p.Threshold(histogram(), calib.U8); err != nil || math.Abs(float64(r.Lo-want.Lo)) > 1e-6 || math.Abs(float64(r.Hi-want.Hi)) > 1e-6 {
				t.Errorf("%s: %v, %v", how, r, err)
			}
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestHostile: whatever the program does is one error that says so, soon.
func TestHostile(t *testing.T) {
	for how, want := range map[string]string{
		"silent":                        "no answer within 300ms",
		"deaf":                          "no answer within 300ms",
		"dead":                          "ended before it answered (exit status 3)",
		"rubbish":                       `expected one line of JSON, got "�[2Jhello"`,
		"other":                         `it speaks "fewbit.calibrator/9", expected {"calibrator":"fewbit.calibrator/1"}`,
		"flood":                         "longer than 4096 bytes",
		"dies":                          "ended before it answered (exit status 4): out of luck",
		"child":                         "ended before it answered (exit status 5)",
		`{"id":ID}`:                     "no lo or no hi",
		`{"id":ID,"lo":2,"hi":-1}`:      "the range 2 to -1 is none",
		`{"id":ID,"lo":0,"hi":0}`:       "leaves nothing of -1 to 2.999",
		`{"id":ID,"lo":0,"hi":1e999}`:   "expected one line of JSON",
		`{"id":ID,"lo":NaN,"hi":1}`:     "expected one line of JSON",
		`{"id":ID,"lo":"a","hi":1}`:     "expected one line of JSON",
		`[1,2]`:                         "expected one line of JSON",
		``:                              "expected one line of JSON",
		`{"id":ID,"error":"no\u001b!"}`: "no\ufffd!",
		`{"id":7,"lo":0,"hi":1}`:        "the answer to question 1 has id 7",
		"{\"id\":ID,\"lo\":0,\"hi\":1}\n{\"id\":ID,\"lo\":0,\"hi\":1}": "the answer to question 2 has id 1",
	} {
		begin := time.Now()
		p, err := start(t, how+map[bool]string{true: " "}[how == ""])
		if err == nil {
			for range 2 {
				if _, err = p.Threshold(histogram(), calib.U8); err != nil {
					break
				}
			}
			if _, again := p.Threshold(histogram(), calib.U8); again == nil && !strings.Contains(how, "lo") && !strings.Contains(how, "id") {
				t.Errorf("%s: it is asked again", how)
			}
			p.Close()
		}
		if !errors.Is(err, ErrCalibrator) || !strings.Contains(err.Error(), want) || strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("%q: %v, want %q", how, err, want)
		}
		if d := time.Since(begin); d > 20*time.Second {
			t.Errorf("%q took %v", how, d)
		}
	}
	if _, err := Start(context.Background(), []string{filepath.Join(t.TempDir(), "none")}, 0); !errors.Is(err, ErrCalibrator) || strings.Contains(err.Error(), t.TempDir()) {
		t.Errorf("no program: %v", err)
	}
	if _, err := Start(context.Background(), nil, 0); !errors.Is(err, ErrCalibrator) {
		t.Errorf("nothing: %v", err)
	}
}

// TestNothingObserved: the program is not asked about what has no values.
func TestNothingObserved(t *testing.T) {
	p, err := start(t, `{"id":ID,"lo":0,"hi":1}`)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Threshold(&calib.Histogram{}, calib.U8); !errors.Is(err, calib.ErrNoData) {
		t.Errorf("%v", err)
	}
}

// TestExample: the program that stands beside the documentation.
func TestExample(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "calibrator")
	if out, err := exec.Command("go", "build", "-o", bin, "../../../examples/calibrator").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p, err := Start(context.Background(), []string{bin, "90"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, err := p.Threshold(histogram(), calib.U8)
	if err != nil || math.Abs(float64(r.Lo)+0.8) > 0.02 || math.Abs(float64(r.Hi)-2.8) > 0.02 {
		t.Errorf("%v, %v", r, err) // 5 % at each end of -1 to 3
	}
}
