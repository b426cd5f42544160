package evenkeel_test

import (
	"go/ast"
	"go/token"
	"slices"
)

// findSleep finds time.Sleep and its disguise, a lone <-time.After(d). Inside a synctest bubble time is virtual and
// sleeping is how it passes, so what stands in the arguments of synctest.Test, or in a function that itself calls
// synctest.Wait (which panics outside a bubble), is no finding. Nor is <-time.After(d) as the pause of a polling
// loop.
func findSleep(s *source) (found []finding) {
	locals := s.locals()
	is := func(n ast.Node, pkg, name string) bool {
		p, got := use(n, locals)
		return p == pkg && got == name
	}
	var stack []ast.Node
	ast.Inspect(s.file, func(n ast.Node) bool {
		if n == nil {
			stack = stack[:len(stack)-1]
			return true
		}
		stack = append(stack, n)
		sleeps := is(n, "time", "Sleep")
		if st, ok := n.(*ast.ExprStmt); ok && !inSelect(stack) && !inPoll(stack) {
			if recv, ok := st.X.(*ast.UnaryExpr); ok && recv.Op == token.ARROW {
				call, ok := recv.X.(*ast.CallExpr)
				sleeps = ok && is(call.Fun, "time", "After")
			}
		}
		if sleeps && !inBubble(stack, is) {
			found = append(found, finding{n.Pos(), "sleeps for real"})
		}
		return true
	})
	return found
}

// inSelect reports whether the last node of stack is what a case of a select waits for.
func inSelect(stack []ast.Node) bool {
	clause, ok := stack[len(stack)-2].(*ast.CommClause)
	return ok && clause.Comm == stack[len(stack)-1]
}

// inPoll reports whether the last node of stack stands in a loop that looks at a deadline: one that asks whether a
// time is After or Before another, or how long something took.
func inPoll(stack []ast.Node) (yes bool) {
	for _, n := range slices.Backward(stack) {
		switch n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.ForStmt:
			ast.Inspect(n, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok {
					x, isName := sel.X.(*ast.Ident)
					isTime := isName && x.Name == "time"
					yes = yes || !isTime && (sel.Sel.Name == "After" || sel.Sel.Name == "Before") ||
						isTime && (sel.Sel.Name == "Since" || sel.Sel.Name == "Until")
				}
				return true
			})
			return yes
		}
	}
	return false
}

// inBubble reports whether the last node of stack runs in a synctest bubble, as far as the file shows it.
func inBubble(stack []ast.Node, is func(n ast.Node, pkg, name string) bool) bool {
	innermost := true
	for _, n := range slices.Backward(stack) {
		switch n := n.(type) {
		case *ast.CallExpr:
			if is(n.Fun, "testing/synctest", "Test") {
				return true
			}
		case *ast.FuncLit, *ast.FuncDecl:
			if innermost && waits(n, is) {
				return true
			}
			innermost = false
		}
	}
	return false
}

// waits reports whether fn itself, not a function inside it, calls synctest.Wait.
func waits(fn ast.Node, is func(n ast.Node, pkg, name string) bool) (yes bool) {
	ast.Inspect(fn, func(n ast.Node) bool {
		if _, inner := n.(*ast.FuncLit); inner && n != fn {
			return false
		}
		yes = yes || n != nil && is(n, "testing/synctest", "Wait")
		return true
	})
	return yes
}
