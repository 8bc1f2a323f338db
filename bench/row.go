package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"text/tabwriter"
)

// Row is one line of the table and of the JSON.
type Row struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Limit is the peer or the physical limit, measured in the same run
	// unless Beside says otherwise; null when there is none.
	Limit *float64 `json:"limit"`
	// Ratio is value / limit.
	Ratio *float64 `json:"ratio"`
	// Budget of the design: a number in the row's unit, or words; null for
	// rows that others are compared with.
	Budget any  `json:"budget"`
	Met    bool `json:"met"`

	// Beside says what the limit is.
	Beside string `json:"-"`
}

// fact is a row without a budget.
func fact(name string, value float64, unit string) Row {
	return Row{Name: name, Value: tidy(value), Unit: unit, Met: true}
}

// atMost is a row whose value has an upper budget.
func atMost(name string, value float64, unit string, budget float64) Row {
	return Row{Name: name, Value: tidy(value), Unit: unit, Budget: budget, Met: value <= budget}
}

// beside puts a limit or peer next to a row.
func (r Row) beside(what string, limit float64) Row {
	limit = tidy(limit)
	r.Beside, r.Limit = what, &limit
	if limit != 0 {
		ratio := tidy(r.Value / limit)
		r.Ratio = &ratio
	}
	return r
}

// ratioAtMost and ratioAtLeast make the ratio the budget.
func (r Row) ratioAtMost(budget float64) Row {
	r.Budget, r.Met = fmt.Sprintf("ratio <= %g", budget), r.Ratio != nil && *r.Ratio <= budget
	return r
}

func (r Row) ratioAtLeast(budget float64) Row {
	r.Budget, r.Met = fmt.Sprintf("ratio >= %g", budget), r.Ratio != nil && *r.Ratio >= budget
	return r
}

// tidy keeps four significant digits.
func tidy(v float64) float64 {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

func printTable(w io.Writer, rows []Row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tVALUE\tLIMIT OR PEER\tRATIO\tBUDGET\tMET")
	missed := 0
	for _, r := range rows {
		limit, ratio, budget, met := "-", "-", "-", "-"
		if r.Limit != nil {
			limit = plain(*r.Limit) + " " + r.Beside
		}
		if r.Ratio != nil {
			ratio = plain(*r.Ratio)
		}
		switch b := r.Budget.(type) {
		case float64:
			budget = "<= " + plain(b) + " " + r.Unit
		case string:
			budget = b
		}
		if r.Budget != nil {
			met = "yes"
			if !r.Met {
				met, missed = "NO", missed+1
			}
		}
		fmt.Fprintf(t, "%s\t%s %s\t%s\t%s\t%s\t%s\n", r.Name, plain(r.Value), r.Unit, limit, ratio, budget, met)
	}
	t.Flush()
	if missed > 0 {
		fmt.Fprintf(w, "budgets missed: %d\n", missed)
	}
}

// plain prints a number without exponent.
func plain(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
