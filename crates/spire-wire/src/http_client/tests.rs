use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;

/// What a server does with the next request that comes.
#[derive(Clone, Copy)]
enum Next {
    Answers,
    /// And says that the connection ends, without ending it.
    Closes,
    /// Ends the connection without an answer.
    Ends,
}

/// Serves by a list, over as many connections as come. Tells which connection each request came over, from 1 on.
async fn server(list: &'static [Next]) -> (String, mpsc::UnboundedReceiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut list = list.iter();
        let mut connection = 0;
        let mut open = Vec::new();
        'connections: loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            connection += 1;
            loop {
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => asked.push(byte),
                        // The client is done with it.
                        Err(_) => continue 'connections,
                    }
                }
                tell.send(connection).unwrap();
                let answer: &[u8] = match list.next() {
                    Some(Next::Answers) => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                    Some(Next::Closes) => {
                        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
                    }
                    Some(Next::Ends) | None => continue 'connections,
                };
                stream.write_all(answer).await.unwrap();
                if answer.windows(5).any(|it| it == b"close") {
                    open.push(stream);
                    continue 'connections;
                }
            }
        }
    });
    (url, told)
}

/// Asks `times` times, one after the other. The connections that the requests came over.
async fn asked(
    client: &HttpClient,
    list: &'static [Next],
    times: usize,
) -> (Vec<Result<Bytes, String>>, Vec<usize>) {
    let (url, mut told) = server(list).await;
    let mut answers = Vec::new();
    for _ in 0..times {
        let request = Request::post(&url).body(Bytes::from("{}")).unwrap();
        let answer = client.send(request).await;
        answers.push(answer.map(Response::into_body));
    }
    let mut connections = Vec::new();
    while let Ok(connection) = told.try_recv() {
        connections.push(connection);
    }
    (answers, connections)
}

#[tokio::test]
async fn a_connection_is_used_again() {
    use Next::Answers;
    let client = HttpClient::plain().unwrap();
    let (answers, connections) = asked(&client, &[Answers, Answers, Answers], 3).await;
    assert!(
        answers.iter().all(|answer| answer.as_deref() == Ok(b"ok")),
        "{answers:?}"
    );
    assert_eq!(connections, [1, 1, 1]);
}

#[tokio::test]
async fn a_kept_connection_that_ended_costs_no_request() {
    use Next::{Answers, Closes, Ends};
    let client = HttpClient::plain().unwrap();
    // The server ends it just as the next request comes: that one goes over a new connection.
    let (answers, connections) = asked(&client, &[Answers, Ends, Answers, Answers], 3).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(connections, [1, 1, 2, 2]);
    // It said so before.
    let (answers, connections) = asked(&client, &[Closes, Answers], 2).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(connections, [1, 2]);
    // A new connection without an answer is an error: the server might answer nobody.
    let (answers, connections) = asked(&client, &[Ends, Answers], 1).await;
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    assert_eq!(connections, [1]);
}

#[tokio::test]
async fn a_connection_that_nobody_uses_ends() {
    let mut client = HttpClient::plain().unwrap();
    client.pool = Arc::new(Pool::keeping_for(Duration::from_millis(10)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let ended = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        // To its end, which comes from the client.
        stream.read_to_end(&mut Vec::new()).await
    });
    let request = Request::get(url).body(Bytes::new()).unwrap();
    client.send(request).await.unwrap();
    ended.await.unwrap().unwrap();
    drop(client);
}
