// Command calibrator is an external calibrator for fewbit quantize --calibrator: it
// keeps the range that holds a share of the values, 99.9 % or what its argument
// says. docs/calibrators.md describes the lines that it reads and writes.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
)

// line is what fewbit sends: a greeting first, then a histogram a line.
type line struct {
	Calibrator string       `json:"calibrator"`
	ID         int64        `json:"id"`
	Min        float64      `json:"min"`
	Max        float64      `json:"max"`
	Cells      [][3]float64 `json:"cells"` // lo, hi, count
}

func main() {
	share := 99.9
	if len(os.Args) > 1 {
		v, err := strconv.ParseFloat(os.Args[1], 64)
		if err != nil || v <= 0 || v > 100 {
			fmt.Fprintln(os.Stderr, "calibrator: give a share of the values in per cent, such as 99.9")
			os.Exit(2)
		}
		share = v
	}
	out := json.NewEncoder(os.Stdout)
	in := bufio.NewReader(os.Stdin)
	for {
		text, err := in.ReadBytes('\n')
		if err != nil {
			return // the end: fewbit needs nothing more
		}
		var l line
		switch err := json.Unmarshal(text, &l); {
		case err != nil:
			fmt.Fprintln(os.Stderr, "calibrator: no JSON:", err)
			os.Exit(1)
		case l.Calibrator != "":
			_ = out.Encode(map[string]string{"calibrator": l.Calibrator})
		default:
			lo, hi := keep(l.Cells, share/100)
			_ = out.Encode(map[string]any{"id": l.ID, "lo": lo, "hi": hi})
		}
	}
}

// keep drops half of what is left out at each end.
func keep(cells [][3]float64, share float64) (lo, hi float64) {
	var total float64
	for _, c := range cells {
		total += c[2]
	}
	tail := total * (1 - share) / 2
	left, right := tail, tail
	for i := range cells {
		if left -= cells[i][2]; left < 0 {
			lo = cells[i][0]
			break
		}
	}
	for i := len(cells) - 1; i >= 0; i-- {
		if right -= cells[i][2]; right < 0 {
			hi = cells[i][1]
			break
		}
	}
	return lo, max(lo, hi)
}
