//! Asks for names of many domains whose servers do not answer, as many at once as it may.

fn main() {
    let names: Vec<String> = (0..50).map(|n| format!("a.slow{n}.example")).collect();
    let begun: Vec<_> = names.iter().map_while(|name| guests::get(name).begin().ok()).collect();
    println!("begun: {}", begun.len());
    for pending in &begun {
        pending.subscribe().block();
    }
}
