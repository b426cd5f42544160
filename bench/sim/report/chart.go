package report

import (
	"fmt"
	"html"
	"math"
	"strings"

	"github.com/evenkeel/evenkeel/bench/sim/metrics"
	"github.com/evenkeel/evenkeel/bench/sim/scenario"
)

// colours tell policies apart, also for those who do not see red and green apart; there are more policies than
// colours, hence the dashes.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"}

func stroke(i int) string {
	dash := []string{"", ` stroke-dasharray="6 3"`, ` stroke-dasharray="2 2"`}[i/len(colours)%3]
	return fmt.Sprintf(`stroke="%s"%s`, colours[i%len(colours)], dash)
}

// Chart draws the results of one scenario as an SVG: of a few steps the percentiles of each policy side by side, of
// many steps the 99.9th percentile as it changes from step to step. The scale of time is logarithmic.
func Chart(s scenario.Scenario, results []*scenario.Result) []byte {
	policies := byPolicy(results)
	if len(s.Steps) >= many {
		return lines(s, policies)
	}
	return dots(s, policies)
}

// scale is a logarithmic axis from pixel a to pixel b.
type scale struct{ low, high, a, b float64 }

func newScale(s scenario.Scenario, policies []policy, figures []figure, a, b float64) scale {
	low, high := math.Inf(1), 0.0
	for _, p := range policies {
		for step := range s.Steps {
			for _, f := range figures {
				if v := metrics.Mean(p.values(step, f)); v > 0 {
					low, high = min(low, v), max(high, v)
				}
			}
		}
	}
	if high == 0 {
		low, high = 1, 10
	}
	return scale{math.Log(low / 1.15), math.Log(high * 1.15), a, b}
}

func (s scale) at(v float64) float64 {
	return s.a + (s.b-s.a)*(math.Log(max(v, math.Exp(s.low)))-s.low)/(s.high-s.low)
}

// ticks are 1, 2 and 5 times the powers of ten that are on the axis.
func (s scale) ticks() []float64 {
	var out []float64
	for e := -3; e <= 9; e++ {
		for _, m := range []float64{1, 2, 5} {
			if v := m * math.Pow(10, float64(e)); math.Log(v) >= s.low && math.Log(v) <= s.high {
				out = append(out, v)
			}
		}
	}
	return out
}

func begin(width, height int, title string) *strings.Builder {
	b := &strings.Builder{}
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" `+
		`font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	fmt.Fprintf(b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	text(b, 10, 20, "", title)
	return b
}

func text(b *strings.Builder, x, y float64, attributes, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" %s>%s</text>`+"\n", x, y, attributes, html.EscapeString(s))
}

func line(b *strings.Builder, x1, y1, x2, y2 float64, attributes string) {
	fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`+"\n", x1, y1, x2, y2, attributes)
}

// dots have a row for each policy and step, with a mark for each percentile.
func dots(s scenario.Scenario, policies []policy) []byte {
	const row, left, right = 18, 190, 880
	figures := []figure{p50, p90, p99, p999}
	height := 50 + len(s.Steps)*(len(policies)*row+row+8) + 20
	b := begin(900, height, fmt.Sprintf("%s: %s. p50, p90, p99 and p99.9 in ms", s.Name, s.Title))
	x := newScale(s, policies, figures, left, right)
	for _, v := range x.ticks() {
		line(b, x.at(v), 36, x.at(v), float64(height-24), `stroke="#ddd"`)
		text(b, x.at(v), float64(height-8), `text-anchor="middle" fill="#555"`, fmt.Sprintf("%g", v))
	}
	y := 50.0
	for step, st := range s.Steps {
		text(b, 10, y, `font-weight="bold"`, st.Name)
		y += row
		for _, p := range policies {
			text(b, left-10, y+4, `text-anchor="end"`, p.name)
			first, last := metrics.Mean(p.values(step, p50)), metrics.Mean(p.values(step, p999))
			line(b, x.at(first), y, x.at(last), y, `stroke="#bbb" stroke-width="2"`)
			for i, f := range figures {
				fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="4.5" fill="%s"><title>%s %s %s ms</title></circle>`+"\n",
					x.at(metrics.Mean(p.values(step, f))), y, colours[i], html.EscapeString(p.name), f.name, p.cell(step, f))
			}
			y += row
		}
		y += 8
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

// lines have the steps from left to right and a line for each policy.
func lines(s scenario.Scenario, policies []policy) []byte {
	const left, right, top, bottom = 60, 680, 40, 420
	height := max(460, 60+len(policies)*18)
	b := begin(900, height, fmt.Sprintf("%s: %s. p99.9 in ms", s.Name, s.Title))
	y := newScale(s, policies, []figure{p999}, bottom, top)
	at := func(step int) float64 { return left + float64(right-left)*float64(step)/float64(len(s.Steps)-1) }
	for _, v := range y.ticks() {
		line(b, left, y.at(v), right, y.at(v), `stroke="#ddd"`)
		text(b, left-8, y.at(v)+4, `text-anchor="end" fill="#555"`, fmt.Sprintf("%g", v))
	}
	for step, st := range s.Steps {
		text(b, at(step), bottom+20, `text-anchor="middle" fill="#555"`, st.Name)
	}
	for i, p := range policies {
		var points []string
		for step := range s.Steps {
			points = append(points, fmt.Sprintf("%.1f,%.1f", at(step), y.at(metrics.Mean(p.values(step, p999)))))
		}
		fmt.Fprintf(b, `<polyline fill="none" stroke-width="2" %s points="%s"/>`+"\n", stroke(i), strings.Join(points, " "))
		ly := float64(top + i*18)
		line(b, right+20, ly, right+50, ly, `stroke-width="2" `+stroke(i))
		text(b, right+56, ly+4, "", p.name)
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}
