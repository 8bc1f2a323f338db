package cli

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/spf13/cobra"
)

// completer answers what could be typed in one place. It asks the control
// plane where it must, briefly, and completes nothing when none answers.
type completer = func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective)

const (
	completeWithin = 2 * time.Second
	completeAtMost = 500
)

var kinds = []string{"workloadidentities", "services", "endpointslices", "workloadentries", "policies", "all"}

// ask collects names from the control plane.
func (o *options) ask(c *cobra.Command, typed string, f func(context.Context, adminv1.AdminClient) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx := c.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeWithin)
	defer cancel()
	o.errOut = io.Discard
	var names []string
	err := o.admin(ctx, func(client adminv1.AdminClient) (err error) {
		names, err = f(ctx, client)
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	slices.Sort(names)
	names = slices.DeleteFunc(slices.Compact(names), func(n string) bool { return !strings.HasPrefix(n, typed) })
	return names, cobra.ShellCompDirectiveNoFileComp
}

// first completes the first argument only.
func first(f completer) completer {
	return func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(c, args, typed)
	}
}

func (o *options) nodeNames(c *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	return o.ask(c, typed, func(ctx context.Context, client adminv1.AdminClient) ([]string, error) {
		r, err := client.ListNodes(ctx, &adminv1.ListNodesRequest{TrustDomain: o.trustDomain})
		var names []string
		for _, n := range r.GetNodes() {
			names = append(names, n.Name)
		}
		return names, err
	})
}

func (o *options) certificates(field func(*adminv1.Certificate) string) completer {
	return func(c *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return o.ask(c, typed, func(ctx context.Context, client adminv1.AdminClient) ([]string, error) {
			r, err := client.ListCertificates(ctx, &adminv1.ListCertificatesRequest{TrustDomain: o.trustDomain, Limit: completeAtMost})
			var names []string
			for _, c := range r.GetCertificates() {
				names = append(names, field(c))
			}
			return names, err
		})
	}
}

func (o *options) spiffeIDs() completer { return o.certificates((*adminv1.Certificate).GetSpiffeId) }
func (o *options) serials() completer   { return o.certificates((*adminv1.Certificate).GetSerial) }

// resources completes KIND, then NAMEs of that kind.
func (o *options) resources(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return kinds, cobra.ShellCompDirectiveNoFileComp
	}
	return o.ask(c, typed, func(ctx context.Context, client adminv1.AdminClient) ([]string, error) {
		r, err := client.Get(ctx, &adminv1.GetRequest{TrustDomain: o.trustDomain, Namespace: o.space(), Kind: args[0]})
		var names []string
		for _, obj := range r.GetObjects() {
			if !slices.Contains(args[1:], obj.Name) {
				names = append(names, obj.Name)
			}
		}
		return names, err
	})
}

// completeFlags sets what flags complete to.
func completeFlags(c *cobra.Command, by map[string]completer) {
	for name, f := range by {
		_ = c.RegisterFlagCompletionFunc(name, f)
	}
}
