//! Pages of those who are not let in yet.

use ah_identity_provider::Explained;
use maud::{Markup, html};

use super::{document, explained};

/// Asks for the token. `next` is the page that was asked for.
pub(in crate::access_point::dashboard) fn form(
    next: &str,
    by_link: bool,
    fault: Option<&str>,
) -> Markup {
    let body = html! {
        main.sign-in #main {
            form.panel method="post" action="/sign-in" {
                h1 { "Agent Harbor" }
                @if by_link {
                    p { "You came here from another site, and your browser sends no cookies with that. "
                        a href=(next) { "Go on to the page" } ", or sign in." }
                }
                label for="token" { "Token of this access point" }
                input #token type="password" name="token" required autofocus autocomplete="current-password"
                    aria-invalid=[fault.map(|_| "true")] aria-describedby="fault";
                p.error #fault role="alert" { (fault.unwrap_or_default()) }
                input type="hidden" name="next" value=(next);
                button.primary type="submit" { "Sign in" }
                p.muted { "It is in the file that " code { "--http-token-file" } " names." }
            }
        }
    };
    document("Sign in", None, body)
}

/// Says why nobody can be let in.
pub(in crate::access_point::dashboard) fn refused(why: &Explained) -> Markup {
    let body = html! { main.sign-in #main { section.panel { (explained(why)) } } };
    document("Closed", None, body)
}
