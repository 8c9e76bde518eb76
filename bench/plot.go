package main

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	_ "gonum.org/v1/plot/vg/vgsvg" // registers the format
)

const (
	plotWidth  = 18 * vg.Centimeter
	plotHeight = 11 * vg.Centimeter
)

// plots draws everything a report has and returns the SVG files by name.
func (p *report) plots() (map[string][]byte, error) {
	files := make(map[string][]byte)
	add := func(name string, pl *plot.Plot, err error) error {
		if err != nil {
			return fmt.Errorf("cannot draw %s: %w", name, err)
		}
		files[name], err = svg(pl)
		return err
	}
	cases := p.latencyCases()
	for _, kase := range cases {
		name := p.Scenario + "-latency.svg"
		if len(cases) > 1 {
			name = p.Scenario + "-latency-" + slug(kase) + ".svg"
		}
		pl, err := p.latencyPlot(kase)
		if err := add(name, pl, err); err != nil {
			return nil, err
		}
	}
	for _, bars := range p.bars {
		name := p.Scenario + "-" + slug(bars[1]) + ".svg"
		if bars[0] != p.Scenario {
			name = p.Scenario + "-" + slug(bars[0]) + "-" + slug(bars[1]) + ".svg"
		}
		pl, err := p.barPlot(bars[0], bars[1])
		if err := add(name, pl, err); err != nil {
			return nil, err
		}
	}
	var curves []string
	for _, c := range p.Curves {
		if !slices.Contains(curves, c.Plot) {
			curves = append(curves, c.Plot)
			pl, err := p.curvePlot(c.Plot)
			if err := add(p.Scenario+"-"+slug(c.Plot)+".svg", pl, err); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

// newPlot has the machine and the commit below the axis: a picture that travels alone still says what it is of.
func (p *report) newPlot(title, xlabel, ylabel string) *plot.Plot {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	pl := plot.New()
	pl.Title.Text = title
	pl.Title.TextStyle.Font.Size, pl.Title.Padding = 13, 8
	pl.X.Label.Text = fmt.Sprintf("%s\n%s, %s, %d cores (%s)", xlabel, p.Date.Format("2006-01-02"), p.Commit, p.Cores, p.CPU)
	pl.Y.Label.Text = ylabel
	for _, axis := range []*plot.Axis{&pl.X, &pl.Y} {
		axis.Label.TextStyle.Font.Size, axis.Tick.Label.Font.Size = 10, 10
		axis.Label.Padding = 4
	}
	pl.Legend.Top, pl.Legend.Padding, pl.Legend.TextStyle.Font.Size = true, 2, 10
	pl.Legend.ThumbnailWidth = 16
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{225}, color.Gray{225}
	pl.Add(grid)
	return pl
}

// palette can be told apart by people who see red and green alike. A target has the same color in every plot.
var palette = []color.RGBA{{0x00, 0x72, 0xb2, 255}, {0xd5, 0x5e, 0x00, 255}, {0x00, 0x9e, 0x73, 255}, {0x88, 0x88, 0x88, 255},
	{0xcc, 0x79, 0xa7, 255}, {0xe6, 0x9f, 0x00, 255}, {0x56, 0xb4, 0xe9, 255}}

func colorOf(name string, i int) color.RGBA {
	known := []string{subject, "pgbouncer", "haproxy", "direct"}
	if at := slices.Index(known, name); at >= 0 {
		return palette[at]
	}
	return palette[i%len(palette)]
}

// dashesOf tells lines apart that have the same color because there are more than colors.
func dashesOf(i int) []vg.Length {
	if i < len(palette) {
		return nil
	}
	return []vg.Length{vg.Points(4), vg.Points(2)}
}

// latencyPlot has a line per target. Its x axis gives every further nine as much room as the one before.
func (p *report) latencyPlot(kase string) (*plot.Plot, error) {
	pl := p.newPlot("Latency by percentile: "+kase, "percentile", "ms")
	low, high, nines := math.Inf(1), 0.0, 1.0
	i := 0
	for _, d := range p.Latencies {
		if d.Case != kase || d.Count == 0 {
			continue
		}
		last := math.Log10(float64(d.Count))
		var xy plotter.XYs
		for _, point := range d.Curve {
			x, y := last, max(point[1], 0.001)
			if point[0] < 100 {
				x = min(last, -math.Log10(1-point[0]/100))
			}
			xy = append(xy, plotter.XY{X: x, Y: y})
			low, high, nines = min(low, y), max(high, y), max(nines, x)
		}
		line, err := plotter.NewLine(xy)
		if err != nil {
			return nil, err
		}
		line.Color, line.Width, line.Dashes = colorOf(d.Target, i), vg.Points(1.8), dashesOf(i)
		pl.Add(line)
		pl.Legend.Add(d.Target, line)
		i++
	}
	if i == 0 {
		return nil, fmt.Errorf("no latency was recorded in %q", kase)
	}
	pl.Legend.Left = true
	pl.X.Min, pl.X.Max = 0, nines
	pl.X.Tick.Marker = plot.TickerFunc(percentileTicks)
	top := step(high, true)
	pl.Y.Min, pl.Y.Max = step(low, false), top
	if i > 4 { // a long legend gets room of its own, a twentieth of the height per line
		share := min(0.05*float64(i), 0.5)
		pl.Y.Max = top * math.Pow(top/pl.Y.Min, share/(1-share))
	}
	pl.Y.Scale, pl.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(func(low, _ float64) []plot.Tick { return logTicks(low, top) })
	return pl, nil
}

func percentileTicks(_, most float64) []plot.Tick {
	ticks := []plot.Tick{{Value: 0, Label: "0"}, {Value: math.Log10(2), Label: "50"}}
	label := "9"
	for n := 1.0; n <= most; n++ {
		shown := label + "0"
		if n > 1 {
			shown = label
		}
		ticks = append(ticks, plot.Tick{Value: n, Label: shown})
		switch n {
		case 1:
			label = "99"
		case 2:
			label = "99.9"
		default:
			label += "9"
		}
	}
	return ticks
}

// step returns the next of 1, 2, 5, 10 ... times a power of ten, above or below.
func step(v float64, above bool) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	best := power
	for _, m := range []float64{1, 2, 5, 10} {
		if above && m*power >= v {
			return m * power
		}
		if !above && m*power <= v {
			best = m * power
		}
	}
	return best
}

func logTicks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for power := math.Pow(10, math.Floor(math.Log10(low))); power <= high; power *= 10 {
		for m := 1.0; m < 10; m++ {
			// The power is a product of tens and a little off, which a label must not show.
			value, _ := strconv.ParseFloat(strconv.FormatFloat(m*power, 'g', 6, 64), 64)
			if value < low*0.999 || value > high*1.001 {
				continue
			}
			tick := plot.Tick{Value: value}
			if m == 1 || m == 2 || m == 5 {
				tick.Label = strconv.FormatFloat(value, 'f', -1, 64)
			}
			ticks = append(ticks, tick)
		}
	}
	return ticks
}

// linearTicks are about five round numbers.
func linearTicks(low, high float64) []plot.Tick {
	width := step((high-low)/6, true)
	var ticks []plot.Tick
	for n := math.Ceil(low / width); n*width <= high*1.001; n++ {
		ticks = append(ticks, plot.Tick{Value: n * width, Label: strconv.FormatFloat(n*width, 'g', 6, 64)})
	}
	return ticks
}

// barPlot has a group of bars per case: medians, with a whisker from the smallest to the largest sample.
func (p *report) barPlot(table, metric string) (*plot.Plot, error) {
	var of []*series
	for _, s := range p.Samples {
		if s.Table == table && s.Metric == metric {
			of = append(of, s)
		}
	}
	if len(of) == 0 {
		return nil, fmt.Errorf("nothing was sampled")
	}
	cases := names(of, func(s *series) string { return s.Case })
	targets := names(of, func(s *series) string { return s.Target })
	title := table + ": " + metric
	if table == metric {
		title = table
	}
	pl := p.newPlot(title+" (median, smallest, largest)", "", of[0].Unit)
	width := plotWidth * 0.7 / vg.Length(len(cases)*len(targets)+len(cases))
	for i, target := range targets {
		heights := make(plotter.Values, len(cases))
		whiskers := &whiskers{}
		for k, kase := range cases {
			s := p.find(table, kase, target, metric)
			if s == nil {
				continue
			}
			heights[k] = float64(s.Median)
			whiskers.XYs = append(whiskers.XYs, plotter.XY{X: float64(k), Y: float64(s.Median)})
			whiskers.YErrors = append(whiskers.YErrors, struct{ Low, High float64 }{float64(s.Median - s.Min), float64(s.Max - s.Median)})
		}
		bars, err := plotter.NewBarChart(heights, width)
		if err != nil {
			return nil, err
		}
		bars.Color, bars.LineStyle.Width = colorOf(target, i), 0
		bars.Offset = width * (vg.Length(i) - vg.Length(len(targets)-1)/2)
		pl.Add(bars)
		pl.Legend.Add(target, bars)
		errs, err := plotter.NewYErrorBars(whiskers)
		if err != nil {
			return nil, err
		}
		pl.Add(&shifted{errs, bars.Offset})
	}
	pl.Y.Min = 0
	pl.Y.Max *= 1.25 // room for the legend
	pl.Legend.Left = true
	pl.Y.Tick.Marker = plot.TickerFunc(linearTicks)
	pl.NominalX(cases...)
	return pl, nil
}

type whiskers struct {
	plotter.XYs
	plotter.YErrors
}

// shifted draws error bars beside their place, as bars of a group are drawn.
type shifted struct {
	*plotter.YErrorBars
	by vg.Length
}

func (s *shifted) Plot(c draw.Canvas, pl *plot.Plot) {
	c.Push()
	defer c.Pop()
	c.Translate(vg.Point{X: s.by})
	s.YErrorBars.Plot(c, pl)
}

// curvePlot has a line with points per series. Axes that span more than two powers of ten are logarithmic.
func (p *report) curvePlot(name string) (*plot.Plot, error) {
	var pl *plot.Plot
	xs, ys := newSpan(), newSpan()
	i := 0
	for _, c := range p.Curves {
		if c.Plot != name {
			continue
		}
		if len(c.X) != len(c.Y) || len(c.X) == 0 {
			return nil, fmt.Errorf("%d values over %d", len(c.Y), len(c.X))
		}
		if pl == nil {
			pl = p.newPlot(name, c.XLabel, c.YLabel)
		}
		xy := make(plotter.XYs, len(c.X))
		for k := range xy {
			xy[k] = plotter.XY{X: c.X[k], Y: c.Y[k]}
			xs.add(c.X[k])
			ys.add(c.Y[k])
		}
		line, points, err := plotter.NewLinePoints(xy)
		if err != nil {
			return nil, err
		}
		line.Color, line.Width, line.Dashes = colorOf(c.Series, i), vg.Points(1.5), dashesOf(i)
		points.Color, points.Shape, points.Radius = line.Color, draw.CircleGlyph{}, vg.Points(2.5)
		pl.Add(line, points)
		pl.Legend.Add(c.Series, line, points)
		i++
	}
	pl.Legend.Left = true
	xs.scale(&pl.X)
	ys.scale(&pl.Y)
	return pl, nil
}

// span is the range of an axis.
type span struct{ low, high float64 }

func newSpan() span { return span{math.Inf(1), math.Inf(-1)} }

func (s *span) add(v float64) { s.low, s.high = min(s.low, v), max(s.high, v) }

// scale leaves a quarter of the height free for the legend when the axis begins at zero.
func (s *span) scale(axis *plot.Axis) {
	if s.low > 0 && s.high/s.low > 100 {
		axis.Min, axis.Max = step(s.low, false), step(s.high, true)
		axis.Scale, axis.Tick.Marker = plot.LogScale{}, plot.TickerFunc(logTicks)
		return
	}
	axis.Min, axis.Max = min(0, s.low), max(s.high*1.25, s.low+1e-9)
	axis.Tick.Marker = plot.TickerFunc(linearTicks)
}

func svg(pl *plot.Plot) ([]byte, error) {
	w, err := pl.WriterTo(plotWidth, plotHeight, "svg")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if _, err := w.WriteTo(&b); err != nil {
		return nil, err
	}
	// Arial has the widths of Liberation Sans, for machines without it.
	return bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif")), nil
}

// writePlots draws first, so that a plot that cannot be drawn leaves no file.
func (p *report) writePlots(dir string) error {
	files, err := p.plots()
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
