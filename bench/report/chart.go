package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// The chart has three panels, each with one kind of cost against the number of endpoints. Both axes are logarithmic: a
// cost that does not grow is a level line, one that grows with the number rises at the slope of the grid's diagonal.

// line is one policy in a panel.
type line struct {
	name   string
	ours   bool
	points []point
}

type point struct{ n, v float64 }

type panel struct {
	title, unit string
	lines       []line
}

// shown are the policies that the chart may show and what they are called there, in the order of the colours.
var shown = []struct{ policy, name string }{
	{"evenkeel_round_robin", "evenkeel round_robin"}, {"evenkeel_random", "evenkeel random"},
	{"evenkeel_weighted", "evenkeel weighted"}, {"evenkeel_least_request", "evenkeel least_request"},
	{"evenkeel_peak_ewma", "evenkeel peak_ewma"}, {"grpc_round_robin", "grpc round_robin"},
	{"grpc_least_request", "grpc least_request"}, {"grpc_weighted_round_robin", "grpc weighted_round_robin"},
	{"go_zero_p2c", "go-zero p2c"}, {"kratos_p2c", "kratos p2c"},
	{"evenkeel_keel", "evenkeel keel"}, {"evenkeel_prequal", "evenkeel prequal"}, {"evenkeel_hash", "evenkeel hash"},
	{"grpc_ring_hash", "grpc ring_hash"},
}

// chart draws the run that has the most policies; the lines of one chart are from one run. It is empty if no run has
// anything to draw.
func chart(runs []*Run) string {
	var best *Run
	for _, r := range runs {
		if best == nil || len(r.Each("policy", "Pick", "filter=none")) > len(best.Each("policy", "Pick", "filter=none")) {
			best = r
		}
	}
	if best == nil {
		return ""
	}
	var panels []panel
	for _, p := range []struct {
		title, unit, bench, keys string
		by                       float64
	}{
		{"a pick and its end", "ns", "Pick", "filter=none ctx=plain par=1", 1},
		{"with a filter that 1 in 10 meets", "ns", "Pick", "filter=one_in_ten ctx=plain par=1", 1},
		{"first update to a picker over all", "ms", "Converge", "", 1e-6},
	} {
		if lines := linesOf(best, p.bench, p.keys, p.by); len(lines) > 0 {
			panels = append(panels, panel{p.title, p.unit, lines})
		}
	}
	if len(panels) == 0 {
		return ""
	}
	return draw(panels, best.Facts["date"], best.Facts["commit"])
}

func linesOf(r *Run, bench, keys string, by float64) []line {
	var lines []line
	for _, s := range shown {
		l := line{name: s.name, ours: strings.HasPrefix(s.policy, evenkeel)}
		for _, n := range r.Each("n", bench, keys+" policy="+s.policy) {
			x, err := strconv.ParseFloat(n, 64)
			if v := r.Find("ns/op", bench, keys+" policy="+s.policy+" n="+n); err == nil && len(v) > 0 {
				l.points = append(l.points, point{x, v.Median() * by})
			}
		}
		if len(l.points) > 1 {
			lines = append(lines, l)
		}
	}
	return lines
}

// Sizes in pixels. The labels stand right of the lines.
const (
	plotWidth  = 250
	plotHeight = 330
	leftRoom   = 62
	labelRoom  = 172
	topRoom    = 66
	bottomRoom = 66
	labelStep  = 13
)

// axis maps a logarithmic range to pixels.
type axis struct{ low, high, from, to float64 }

func (a axis) at(v float64) float64 {
	return a.from + (math.Log10(v)-a.low)/(a.high-a.low)*(a.to-a.from)
}

func draw(panels []panel, date, commit string) string {
	const step = leftRoom + plotWidth + labelRoom
	width, height := step*len(panels), topRoom+plotHeight+bottomRoom
	var w strings.Builder
	fmt.Fprintf(&w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" `+
		`aria-label="Cost of load-balancing policies against the number of endpoints">`+"\n", width, height, width, height)
	w.WriteString(style)
	fmt.Fprintf(&w, `<rect class="paper" width="%d" height="%d"/>`+"\n", width, height)
	fmt.Fprintf(&w, `<text class="head" x="16" y="26">What a policy costs, by the number of endpoints</text>`+"\n")
	fmt.Fprintf(&w, `<text class="note" x="16" y="%d">Both axes are logarithmic. Lines of one run, medians: %s, commit %s. `+
		`Solid: evenkeel, blacklist on. Dashed: others.</text>`+"\n", height-12, date, commit)
	for i, p := range panels {
		p.draw(&w, float64(i*step+leftRoom))
	}
	w.WriteString("</svg>\n")
	return w.String()
}

// style has colours for light and dark surroundings. The colours of lines are told apart by people who see few colours,
// and every line has its name beside it.
const style = `<style>
.paper { fill: #ffffff } .head { font: 600 15px sans-serif; fill: #1f2328 } .title { font: 600 12px sans-serif; fill: #1f2328 }
.note, .tick { font: 11px sans-serif; fill: #59636e } .grid { stroke: #d8dee4; stroke-width: 1 }
.line { fill: none; stroke-width: 2 } .other { stroke-dasharray: 5 3 } .name { font: 11px sans-serif } .lead { stroke-width: 1; opacity: .5 }
.s0 { stroke: #0550ae } .s1 { stroke: #1a7f8f } .s2 { stroke: #116329 } .s3 { stroke: #6639ba } .s4 { stroke: #0a3069 }
.s5 { stroke: #59636e } .s6 { stroke: #bc4c00 } .s7 { stroke: #9a6700 } .s8 { stroke: #bf3989 } .s9 { stroke: #cf222e }
.s10 { stroke: #1f883d } .s11 { stroke: #8250df } .s12 { stroke: #0969da } .s13 { stroke: #953800 }
.f10 { fill: #1f883d } .f11 { fill: #8250df } .f12 { fill: #0969da } .f13 { fill: #953800 }
.f0 { fill: #0550ae } .f1 { fill: #1a7f8f } .f2 { fill: #116329 } .f3 { fill: #6639ba } .f4 { fill: #0a3069 }
.f5 { fill: #59636e } .f6 { fill: #bc4c00 } .f7 { fill: #9a6700 } .f8 { fill: #bf3989 } .f9 { fill: #cf222e }
@media (prefers-color-scheme: dark) {
.paper { fill: #0d1117 } .head, .title { fill: #f0f6fc } .note, .tick { fill: #9198a1 } .grid { stroke: #2f353d }
.s0 { stroke: #79c0ff } .s1 { stroke: #76e3ea } .s2 { stroke: #56d364 } .s3 { stroke: #d2a8ff } .s4 { stroke: #a5d6ff }
.s5 { stroke: #9198a1 } .s6 { stroke: #ffa657 } .s7 { stroke: #e3b341 } .s8 { stroke: #ff9bce } .s9 { stroke: #ff7b72 }
.s10 { stroke: #7ee787 } .s11 { stroke: #e2c5ff } .s12 { stroke: #58a6ff } .s13 { stroke: #f0883e }
.f10 { fill: #7ee787 } .f11 { fill: #e2c5ff } .f12 { fill: #58a6ff } .f13 { fill: #f0883e }
.f0 { fill: #79c0ff } .f1 { fill: #76e3ea } .f2 { fill: #56d364 } .f3 { fill: #d2a8ff } .f4 { fill: #a5d6ff }
.f5 { fill: #9198a1 } .f6 { fill: #ffa657 } .f7 { fill: #e3b341 } .f8 { fill: #ff9bce } .f9 { fill: #ff7b72 }
}
</style>
`

func (p panel) draw(w *strings.Builder, left float64) {
	x := axis{math.Inf(1), math.Inf(-1), left, left + plotWidth}
	y := axis{math.Inf(1), math.Inf(-1), topRoom + plotHeight, topRoom}
	for _, l := range p.lines {
		for _, pt := range l.points {
			x.low, x.high = min(x.low, math.Log10(pt.n)), max(x.high, math.Log10(pt.n))
			y.low, y.high = min(y.low, math.Log10(pt.v)), max(y.high, math.Log10(pt.v))
		}
	}
	// Whole decades, and at least one.
	y.low, y.high = math.Floor(y.low), math.Ceil(y.high)
	if y.high == y.low {
		y.high++
	}
	if x.high == x.low {
		x.high++
	}
	fmt.Fprintf(w, `<text class="title" x="%.0f" y="%d">%s, %s</text>`+"\n", left-leftRoom+16, topRoom-14, p.title, p.unit)
	for d := y.low; d <= y.high; d++ {
		at := y.at(math.Pow(10, d))
		fmt.Fprintf(w, `<line class="grid" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`+"\n", x.from, x.to, at, at)
		fmt.Fprintf(w, `<text class="tick" text-anchor="end" x="%.1f" y="%.1f">%s</text>`+"\n", x.from-6, at+4, plain(math.Pow(10, d)))
	}
	for _, n := range p.sizes() {
		at := x.at(n)
		fmt.Fprintf(w, `<line class="grid" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`+"\n", at, at, y.to, y.from)
		fmt.Fprintf(w, `<text class="tick" text-anchor="middle" x="%.1f" y="%.1f">%s</text>`+"\n", at, y.from+16, plain(n))
	}
	fmt.Fprintf(w, `<text class="tick" text-anchor="middle" x="%.1f" y="%.1f">endpoints</text>`+"\n", (x.from+x.to)/2, y.from+32)
	p.drawLines(w, x, y)
}

func (p panel) sizes() []float64 {
	var all []float64
	for _, l := range p.lines {
		for _, pt := range l.points {
			if !slices.Contains(all, pt.n) {
				all = append(all, pt.n)
			}
		}
	}
	return all
}

func (p panel) drawLines(w *strings.Builder, x, y axis) {
	type label struct {
		colour   int
		name     string
		fromX    float64
		from, at float64
	}
	var labels []label
	for _, l := range p.lines {
		colour := slices.IndexFunc(shown, func(s struct{ policy, name string }) bool { return s.name == l.name })
		class := ""
		if !l.ours {
			class = " other"
		}
		var path []string
		for _, pt := range l.points {
			path = append(path, fmt.Sprintf("%.1f,%.1f", x.at(pt.n), y.at(pt.v)))
		}
		fmt.Fprintf(w, `<polyline class="line s%d%s" points="%s"/>`+"\n", colour, class, strings.Join(path, " "))
		for _, pt := range l.points {
			fmt.Fprintf(w, `<circle class="f%d" r="2.5" cx="%.1f" cy="%.1f"><title>%s, %s endpoints: %s %s</title></circle>`+"\n",
				colour, x.at(pt.n), y.at(pt.v), l.name, plain(pt.n), figure(pt.v), p.unit)
		}
		last := l.points[len(l.points)-1]
		labels = append(labels, label{colour, l.name, x.at(last.n), y.at(last.v), y.at(last.v)})
	}
	// Names must not cover each other: from above, each keeps its distance from the one before; what that pushes out at
	// the bottom is pushed back from below.
	slices.SortFunc(labels, func(a, b label) int { return int(math.Copysign(1, a.from-b.from)) })
	for i := 1; i < len(labels); i++ {
		labels[i].at = max(labels[i].at, labels[i-1].at+labelStep)
	}
	for i, floor := len(labels)-1, y.from; i >= 0; i-- {
		labels[i].at = min(labels[i].at, floor)
		floor = labels[i].at - labelStep
	}
	for _, l := range labels {
		fmt.Fprintf(w, `<line class="lead s%d" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`+"\n", l.colour, l.fromX+3, x.to+14, l.from, l.at)
		fmt.Fprintf(w, `<text class="name f%d" x="%.1f" y="%.1f">%s</text>`+"\n", l.colour, x.to+17, l.at+4, l.name)
	}
}

// plain is a number on an axis.
func plain(v float64) string {
	if v >= 1 {
		return thousands(strconv.FormatFloat(v, 'f', 0, 64))
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}
