package eval

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

const (
	// matchIoU: two boxes of one class that overlap by so much are one object
	// (PASCAL VOC; Everingham et al., IJCV 2010).
	matchIoU = 0.5
	// maxDetections are compared of one image, those of the highest scores: pairs
	// grow with their square.
	maxDetections = 1000
)

// Detected compares what two detectors found in the same images. Order and
// number of a detector's boxes change with the last bit of a score, so that no
// element of its outputs has a counterpart.
type Detected struct {
	// Agreement is the mean over images of the share of all scores, of both
	// models, that stands on boxes which both found: same class, overlap of 0.5 at
	// least, each box matched once. Images where neither finds anything agree.
	Agreement Score `json:"agreement"`
	// Overlap is the mean intersection over union of the matched boxes, 0.5..1; 0
	// without any.
	Overlap float64 `json:"overlap"`
	// Ref and Quant count the boxes, Matched those that both found.
	Ref     int64 `json:"ref"`
	Quant   int64 `json:"quant"`
	Matched int64 `json:"matched"`
	// Empty counts images where neither model finds anything.
	Empty int `json:"empty,omitempty"`
}

// detector says which outputs hold what was found: boxes [n, 4] or [1, n, 4]
// with scores and, when there are classes, labels of n elements each; or boxes
// alone, [1, n, 6], of corners, score and label in one row.
type detector struct{ boxes, scores, labels *Tap }

// findDetector recognizes a detector by its outputs' names and the shapes that
// it returned, nil when it is none.
func findDetector(outs []Tap, got engine.Feeds) *detector {
	d := &detector{}
	for i, t := range outs {
		dims := got[t.Ref].Dims
		name := strings.ToLower(t.Name)
		switch {
		case d.boxes == nil && strings.Contains(name, "box") && rows(dims, 4) >= 0:
			d.boxes = &outs[i]
		case d.scores == nil && (strings.Contains(name, "score") || strings.Contains(name, "conf")) && list1(dims) >= 0 && floating(got[t.Ref]):
			d.scores = &outs[i]
		case d.labels == nil && (strings.Contains(name, "label") || strings.Contains(name, "class")) && list1(dims) >= 0:
			d.labels = &outs[i]
		}
	}
	if len(outs) == 1 && len(got[outs[0].Ref].Dims) == 3 && rows(got[outs[0].Ref].Dims, 6) > 1 {
		return &detector{boxes: &outs[0]}
	}
	if d.boxes == nil || d.scores == nil {
		return nil
	}
	n := rows(got[d.boxes.Ref].Dims, 4)
	if list1(got[d.scores.Ref].Dims) != n {
		return nil
	}
	if d.labels != nil && list1(got[d.labels.Ref].Dims) != n {
		d.labels = nil
	}
	return d
}

// has reports whether t is one of the outputs that d reads.
func (d *detector) has(t Tap) bool {
	for _, o := range []*Tap{d.boxes, d.scores, d.labels} {
		if o != nil && o.Name == t.Name {
			return true
		}
	}
	return false
}

func floating(t *tensor.Tensor) bool {
	return t != nil && (t.Type == tensor.Float32 || t.Type == tensor.Float16 || t.Type == tensor.BFloat16)
}

// rows returns n of [n, width] or [1, n, width], else -1.
func rows(dims []int64, width int64) int64 {
	if len(dims) == 3 && dims[0] == 1 {
		dims = dims[1:]
	}
	if len(dims) != 2 || dims[1] != width {
		return -1
	}
	return dims[0]
}

// list1 returns n of [n] or [1, n], else -1.
func list1(dims []int64) int64 {
	if len(dims) == 2 && dims[0] == 1 {
		dims = dims[1:]
	}
	if len(dims) != 1 {
		return -1
	}
	return dims[0]
}

// box is one detection; sides as the model gives them.
type box struct {
	at    [4]float32
	score float64
	label float32
}

// read returns what one model found in one image, the highest score first.
// sound is false when a coordinate or score is no finite number. Entries
// without a score above 0 are padding.
func (d *detector) read(got engine.Feeds, name func(Tap) string) (found []box, sound bool, err error) {
	b, err := floats(name(*d.boxes), got[name(*d.boxes)])
	if err != nil {
		return nil, false, err
	}
	var scores, labels []float32
	stride := 6
	if d.scores != nil {
		stride = 4
		if scores, err = floats(name(*d.scores), got[name(*d.scores)]); err != nil {
			return nil, false, err
		}
	}
	if d.labels != nil {
		if labels, err = floats(name(*d.labels), got[name(*d.labels)]); err != nil {
			return nil, false, err
		}
	}
	n := len(b) / stride
	if len(b)%stride != 0 || d.scores != nil && len(scores) != n || d.labels != nil && len(labels) != n {
		return nil, false, fmt.Errorf("%w: %d numbers of boxes, %d scores and %d labels do not belong together", ErrOutput, len(b), len(scores), len(labels))
	}
	sound = true
	for i := range n {
		x := box{at: [4]float32(b[i*stride : i*stride+4])}
		if d.scores != nil {
			x.score = float64(scores[i])
		} else {
			x.score, x.label = float64(b[i*6+4]), b[i*6+5]
		}
		if labels != nil {
			x.label = labels[i]
		}
		for _, v := range x.at {
			sound = sound && !math.IsNaN(float64(v)) && !math.IsInf(float64(v), 0)
		}
		sound = sound && !math.IsNaN(x.score) && !math.IsInf(x.score, 0)
		if x.score > 0 {
			found = append(found, x)
		}
	}
	sort.SliceStable(found, func(i, j int) bool { return found[i].score > found[j].score })
	return found[:min(len(found), maxDetections)], sound, nil
}

// corners turns boxes of centre, width and height into corners, where one of
// them cannot be corners: its second lies before its first.
func corners(sets ...[]box) {
	centre := false
	for _, s := range sets {
		centre = centre || slices.ContainsFunc(s, func(b box) bool { return b.at[2] < b.at[0] || b.at[3] < b.at[1] })
	}
	if !centre {
		return
	}
	for _, s := range sets {
		for i, b := range s {
			x, y, w, h := b.at[0], b.at[1], b.at[2]/2, b.at[3]/2
			s[i].at = [4]float32{x - w, y - h, x + w, y + h}
		}
	}
}

func iou(a, b [4]float32) float64 {
	area := func(x [4]float32) float64 { return float64(x[2]-x[0]) * float64(x[3]-x[1]) }
	w := float64(min(a[2], b[2]) - max(a[0], b[0]))
	h := float64(min(a[3], b[3]) - max(a[1], b[1]))
	if a == b {
		return 1 // an empty box is itself, too
	}
	if w <= 0 || h <= 0 {
		return 0
	}
	return w * h / (area(a) + area(b) - w*h)
}

// detections gathers a Detected. The zero value is ready.
type detections struct {
	Detected
	overlaps float64
}

// add compares two images' boxes, both sorted by score, and returns the share
// that agrees, 0..1. Of the boxes that fit, each of ref takes the one that
// overlaps most, in the order of its scores, as detections are matched to the
// truth. errs sees the coordinates of what both found.
func (d *detections) add(ref, quant []box, errs *Error) (float64, error) {
	d.Ref += int64(len(ref))
	d.Quant += int64(len(quant))
	if len(ref) == 0 && len(quant) == 0 {
		d.Empty++
		return 1, nil
	}
	corners(ref, quant)
	var all, both float64
	for _, b := range quant {
		all += b.score
	}
	taken := make([]bool, len(quant))
	for _, a := range ref {
		all += a.score
		best, at := 0.0, -1
		for j, b := range quant {
			if taken[j] || b.label != a.label {
				continue
			}
			if o := iou(a.at, b.at); o >= matchIoU && o > best {
				best, at = o, j
			}
		}
		if at < 0 {
			continue
		}
		taken[at] = true
		both += a.score + quant[at].score
		d.Matched++
		d.overlaps += best
		if err := errs.Observe(a.at[:], quant[at].at[:]); err != nil {
			return 0, err
		}
	}
	return both / all, nil
}

// finish names what was gathered. per holds each image's share.
func (d *detections) finish(per []float64, seed uint64) (*Detected, error) {
	if d.Matched > 0 {
		d.Overlap = d.overlaps / float64(d.Matched)
	}
	var err error
	d.Agreement, err = MeanScore("agreement of detections", per, seed, true)
	return &d.Detected, err
}

// detections compares what both models found in one image.
func (c *comparison) detections(r, q engine.Feeds) error {
	a, heard, err := c.find.read(r, func(t Tap) string { return t.Ref })
	if err != nil {
		return fmt.Errorf("reference model: %w", err)
	}
	b, sound, err := c.find.read(q, func(t Tap) string { return t.Quant })
	if err != nil {
		return fmt.Errorf("quantized model: %w", err)
	}
	name := c.res.Output
	if c.errs[name] == nil {
		c.errs[name] = new(Error)
	}
	share := 0.0
	switch {
	case !heard:
		c.res.BlindSamples++
	case !sound:
		c.res.BrokenSamples++
	default:
		if share, err = c.found.add(a, b, c.errs[name]); err != nil {
			return err
		}
	}
	c.res.Cosines = append(c.res.Cosines, share)
	return nil
}
